from __future__ import annotations

import numpy as np
import pytest
import torch
from small_logs import small_log

from dccl_flower.config import ConfError
from dccl_flower.data.interactions import PAST, RECENT, TEST
from dccl_flower.interaction_config import LogDataConf, WorldConf
from dccl_flower.interaction_experiment import (
    UNUSED,
    InteractionExperiment,
    recipe,
    scored_by_recent,
)
from dccl_flower.recommendation_config import FitConf, InteractionConf, RecommenderConf, UsersConf

WORLD = LogDataConf(world=WorldConf(users=200, items=30, rows=20))


def conf_of(count=20, **more):
    return InteractionConf(data=WORLD, devices=UsersConf(count=count), **more)


@pytest.fixture(scope="module")
def experiment():
    return InteractionExperiment.open(conf_of())


def test_devices_are_users_with_samples_to_train_on_and_to_score(experiment):
    assert len(set(experiment.users)) == 20
    for device, user in enumerate(experiment.users):
        samples = experiment.device_loader(device)
        assert len(samples.own["label"]) > 0 < len(samples.scoring["label"])
        for part in (samples.own, samples.scoring):
            assert set(part["user"].tolist()) == {user}


def test_the_seed_draws_the_devices(experiment):
    again = InteractionExperiment.open(conf_of())
    assert again.users.tolist() == experiment.users.tolist()
    other = InteractionExperiment(conf_of(seed=1), experiment.log)
    assert other.users.tolist() != experiment.users.tolist()


def test_the_past_is_that_of_all_users_and_of_no_other_part(experiment):
    rows = experiment.log.rows_in(PAST)
    assert len(experiment.past()["label"]) == len(rows) > 0
    assert experiment.log.parts[rows].max() == PAST


def test_deciles_go_by_activity(experiment):
    log, active = experiment.log, []
    for user in experiment.users:
        active.append(len(log.rows_of(user, PAST)) + len(log.rows_of(user, RECENT)))
    order = np.argsort(active, kind="stable")
    assert experiment.deciles[order].tolist() == np.repeat(np.arange(1, 11), 2).tolist()


def test_the_model_is_the_seed_s():
    first, same, other = (
        InteractionExperiment.open(
            conf_of(seed=seed, model=RecommenderConf(hidden=[4]))
        ).recommender()
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.last.weight, same.last.weight)
    assert not torch.equal(first.last.weight, other.last.weight)


def test_more_devices_than_users_to_score_are_refused():
    with pytest.raises(ConfError, match=r"devices.count=500: only \d+ users"):
        InteractionExperiment.open(conf_of(count=500))


def test_on_unseen_the_later_half_of_what_devices_hold_scores():
    log = small_log(
        [
            (0, 0, 1, 1, PAST),
            (0, 1, 1, 2, RECENT),
            (0, 2, 0, 3, RECENT),
            (0, 3, 1, 4, RECENT),
            (0, 4, 1, 5, TEST),
            (1, 5, 1, 1, RECENT),
            (1, 6, 0, 1, RECENT),
            (2, 7, 1, 1, RECENT),
            (2, 8, 1, 2, RECENT),
            (2, 8, 1, 3, TEST),
        ]
    )
    # In the middle of user 1's rows a moment would be torn apart: both of its rows score.
    parts = [PAST, RECENT, TEST, TEST, UNUSED, TEST, TEST, RECENT, TEST, UNUSED]
    assert scored_by_recent(log).parts.tolist() == parts
    assert log.parts[4] == TEST


def test_on_unseen_devices_do_not_hold_what_scores(experiment):
    unseen = experiment.on_unseen()
    assert unseen.conf.scoring == "validation"
    for device, user in enumerate(unseen.users):
        recent = set(experiment.log.rows_of(int(user), RECENT))
        own, scoring = (set(unseen.log.rows_of(int(user), part)) for part in (RECENT, TEST))
        assert own | scoring == recent
        assert not own & scoring
        assert len(unseen.device_loader(device).scoring["label"]) == len(scoring)


def test_a_recipe_is_what_the_section_says():
    made = recipe(FitConf(epochs=3, batch_size=7, lr=0.5, weight_decay=0.1))
    assert (made.epochs, made.batch_size, made.lr, made.weight_decay) == (3, 7, 0.5, 0.1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": RecommenderConf(hidden=[])}, "model.hidden="),
        ({"model": RecommenderConf(hidden=[8, 0])}, "model.hidden="),
    ],
)
def test_what_does_not_go_together_is_refused(change, told):
    with pytest.raises(ConfError, match=told):
        InteractionConf(**change).check()


@pytest.mark.parametrize(("key", "value"), [("gpu", True), ("devices_per_node", 2)])
def test_runtimes_that_small_models_do_not_take_are_refused(key, value):
    conf = InteractionConf()
    setattr(conf.runtime, key, value)
    with pytest.raises(ConfError, match=f"runtime.{key}="):
        conf.check()
