from __future__ import annotations

from math import nan

import pytest
import torch

from dccl_flower.interaction_config import LogDataConf, WorldConf
from dccl_flower.interaction_experiment import InteractionExperiment
from dccl_flower.learning.ranking import user_scores
from dccl_flower.learning.recommend import predict
from dccl_flower.method import Answer, DeviceScore, ScoresByDevice
from dccl_flower.recommendation_config import (
    FitConf,
    InteractionConf,
    RecommenderConf,
    UsersConf,
)
from dccl_flower.strategies.ranked import SCORES, Ranked, device_scores


@pytest.fixture(scope="module")
def experiment():
    conf = InteractionConf(
        data=LogDataConf(world=WorldConf(users=150, items=30, rows=20)),
        devices=UsersConf(count=10),
        model=RecommenderConf(embedding=4, hidden=[8]),
        pretrain=FitConf(epochs=2, lr=0.01),
    )
    return InteractionExperiment.open(conf)


def answer(device, *numbers):
    return Answer(device, {}, 1, {}, {SCORES: torch.tensor(numbers, dtype=torch.float64)})


def test_the_model_learns_the_past_once_and_the_same_each_time(experiment):
    told = []
    ranked, again = (Ranked(experiment, lambda *what: told.append(what[:3])) for _ in range(2))
    before = ranked.model.last.weight.clone()
    ranked.prepare()
    ranked.prepare()
    assert told == [("pretrain", 1, 2), ("pretrain", 2, 2)]
    assert not torch.equal(ranked.model.last.weight, before)
    again.prepare()
    assert torch.equal(ranked.model.last.weight, again.model.last.weight)


def test_a_model_is_found_again_where_the_configuration_says_so(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("DCCL_CACHE", str(tmp_path))
    monkeypatch.setattr(experiment.conf.runtime, "reuse", True)
    told = []
    made, found = (Ranked(experiment, lambda *what: told.append(what[:3])) for _ in range(2))
    made.prepare()
    found.prepare()
    assert len(told) == 2
    assert torch.equal(made.model.last.weight, found.model.last.weight)


def test_what_a_device_sends_is_how_its_own_samples_rank(experiment):
    model, scoring = experiment.recommender(), experiment.device_loader(3).scoring
    sent = device_scores(model, scoring, 2)
    found = user_scores(predict(model, scoring), scoring["label"], 2)
    assert list(sent) == [SCORES]
    expected = [found.auc, found.hit, found.ndcg, found.mrr, found.count]
    assert sent[SCORES].tolist() == pytest.approx(expected, nan_ok=True)


def test_scores_are_means_over_devices_and_gauc_weighs_by_samples(experiment):
    ranked = Ranked(experiment, lambda *_: None)
    assert list(ranked.scores({})) == []
    assert ranked.by_device() == {}
    ranked.take([answer(4, 0.5, 1, 0.5, 0.2, 1), answer(7, 0.9, 0, 0.3, 0.4, 3)])
    ranked.take([answer(4, 0.5, 1, 0.5, 0.2, 1), answer(2, 0.9, 0, 0.3, 0.4, 3)])
    ranked.take([*(answer(d, *numbers) for d, numbers in enumerate(
        [(0.5, 1, 0.5, 0.2, 1), (0.9, 0, 0.3, 0.4, 3), (nan, nan, nan, nan, 2)]
    ))])  # fmt: skip
    scores = dict(ranked.scores({}))
    assert list(scores) == ["gauc", "hit", "ndcg", "mrr"]
    assert list(scores.values()) == pytest.approx([0.8, 0.5, 0.4, 0.3])
    assert isinstance(ranked, ScoresByDevice)
    deciles = experiment.deciles
    assert ranked.by_device()[1] == DeviceScore(0.9, 3, int(deciles[1]))
    assert sorted(ranked.by_device()) == [0, 1, 2]
