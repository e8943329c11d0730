"""CoDA's rounds driven by hand: what crosses, and what each arm makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_experiments import device_of, end_of, halves

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.data.interactions import PAST, RECENT, TEST
from dccl_flower.method import Answer
from dccl_flower.simulations.app.in_process import run_here
from dccl_flower.simulations.experiment import check_devices, open_experiment
from dccl_flower.simulations.run.display import Display
from dccl_flower.turns import from_config, to_config

SMALL = (
    "devices.count=4",
    "data.history=3",
    "data.world.users=40",
    "data.world.items=30",
    "data.world.rows=30",
    "pretrain.epochs=1",
    "device.epochs=1",
    "matching.each=2",
)


def experiment_of(*overrides):
    return open_experiment(load_conf("coda_world", [*SMALL, *overrides]))


@pytest.fixture(scope="module")
def experiment():
    return experiment_of()


@pytest.fixture(scope="module")
def both(experiment):
    return halves(experiment)


def told(server, half, experiment, store, devices=(0, 1)):
    """Open a round, answer its first question, and return the second."""
    going = server.round(1, server.initial_state(), devices)
    tells = next(going)
    answers = {d: half.turn(tells[d], device_of(experiment, d, store)) for d in tells}
    return going, answers, going.send(answers)


def learnt(experiment, store, devices=(0, 1)):
    """Drive a whole round; return the server and the answers."""
    server, half = halves(experiment)
    going, _, asks = told(server, half, experiment, store, devices)
    answers = {d: half.turn(asks[d], device_of(experiment, d, store)) for d in asks}
    assert end_of(going, answers) == {}
    return server, answers


def test_a_device_holds_its_past_too_and_the_cloud_all_but_what_scores(experiment):
    user, own = int(experiment.users[1]), experiment.device_loader(1)
    rows = [len(experiment.log.rows_of(user, part)) for part in (PAST, RECENT, TEST)]
    assert (len(own.own["label"]), len(own.scoring["label"])) == (rows[0] + rows[1], rows[2])
    assert set(experiment.log.parts[experiment.known()]) == {PAST, RECENT}


def test_first_items_and_histories_go_up_and_nothing_else(both, experiment, tmp_path):
    _, answers, _ = told(*both, experiment, tmp_path)
    own = experiment.device_loader(1).own
    assert set(answers[1].beside) == {"item", "history"}
    assert (answers[1].state, answers[1].metrics) == ({}, {})
    assert answers[1].beside["item"].tolist() == own["item"].tolist()
    assert answers[1].beside["history"].tolist() == own["history"].flatten().tolist()


def test_samples_of_others_come_down_without_their_users(both, experiment, tmp_path):
    server, half = both
    _, _, asks = told(server, half, experiment, tmp_path)
    matched = asks[0].beside["matched"]
    assert set(matched) == {"item", "history", "profile", "label", "group"}
    assert {codes.dtype for codes in matched.values()} == {torch.int32}
    groups = matched["group"]
    assert set(groups.tolist()) == set(range(int(groups.max()) + 1))
    owned = len(experiment.device_loader(0).own["label"])
    assert 0 < len(groups) <= 2 * owned
    again = told(server, half, experiment, tmp_path)[2]
    assert all(torch.equal(again[0].beside["matched"][name], matched[name]) for name in matched)
    assert asks[0].keep["model"].digest == asks[1].keep["model"].digest


@pytest.mark.parametrize("by", ["samples", "users", "random"])
def test_nobody_is_offered_samples_of_his_own(by, tmp_path):
    experiment = experiment_of(f"matching.by={by}", "matching.each=1000")
    server, half = halves(experiment)
    going = server.round(1, {}, [0])
    answer = half.turn(next(going)[0], device_of(experiment, 0, tmp_path))
    found = server._match(1, answer)
    users = server.pool.samples["user"]
    assert int(experiment.users[0]) not in users[found].tolist()
    assert len(found) == len(found.unique())
    if by != "users":  # more is asked for than there is: all that there is
        assert len(found) == int((users != int(experiment.users[0])).sum())


def test_then_scores_go_up_and_nothing_else(experiment, tmp_path):
    server, answers = learnt(experiment, tmp_path)
    assert all(set(each.beside) == {"scores"} and each.state == {} for each in answers.values())
    assert answers[1].count == len(experiment.device_loader(1).scoring["label"])
    assert set(dict(server.scores({}))) == {"gauc", "hit", "ndcg", "mrr"}
    assert set(server.by_device()) == {0, 1}
    assert list(server.state_dict({})) == ["model"]


def test_a_round_is_the_same_again_and_the_model_starts_anew(experiment, tmp_path):
    once, again = (learnt(experiment, tmp_path)[1] for _ in range(2))
    alone = learnt(experiment, tmp_path, devices=(1,))[1]
    for answers in (again, alone):
        assert torch.equal(once[1].beside["scores"], answers[1].beside["scores"])


@pytest.mark.parametrize("keeps", ["hard", "soft", "all", "users"])
def test_devices_tell_what_they_keep_only_where_it_is_measured(keeps, tmp_path):
    by = "users" if keeps == "users" else "samples"
    given = (f"sieve.keeps={keeps}", f"matching.by={by}", "method.report_kept=true")
    server, answers = learnt(experiment_of(*given), tmp_path)
    kept, scores = answers[0].beside["kept"], dict(server.scores({}))
    assert kept.min() >= 0
    assert 0 <= scores["matched_own_taste"] <= 1
    if keeps == "all":
        assert scores["kept"] == 1
        assert scores["kept_own_taste"] == scores["matched_own_taste"]
    elif keeps != "soft":
        assert set(kept.tolist()) <= {0.0, 1.0}


def test_shares_are_of_what_is_kept(experiment):
    server, _ = halves(experiment_of("method.report_kept=true"))
    clusters = experiment.log.clusters[server.pool.samples["user"].numpy()]
    mine = experiment.log.clusters[experiment.users[0]]
    same, other = (
        torch.from_numpy(np.flatnonzero(each)) for each in (clusters == mine, clusters != mine)
    )
    found = torch.cat([same[:2], other[:2]])
    told_kept = Answer(0, {}, 1, {}, {"kept": torch.tensor([1.0, 0.5, 0.5, 0.0])})
    server._measure({0: found}, {0: told_kept})
    assert server._shares == pytest.approx(
        {"matched_own_taste": 0.5, "kept_own_taste": 0.75, "kept": 0.75}
    )


def test_the_clouds_model_is_scored_in_one_exchange(tmp_path):
    experiment = experiment_of("method.serves=cloud")
    server, half = halves(experiment)
    going = server.round(1, {}, [0])
    ask = next(going)[0]
    before = {name: tensor.clone() for name, tensor in server.model.state_dict().items()}
    answer = half.turn(ask, device_of(experiment, 0, tmp_path))
    assert end_of(going, {0: answer}) == {}
    assert all(torch.equal(half._model.state_dict()[name], before[name]) for name in before)


def test_alone_a_device_tells_no_keys(tmp_path):
    experiment = experiment_of("matching.by=nothing")
    server, half = halves(experiment)
    going = server.round(1, {}, [0])
    ask = next(going)[0]
    assert ask.beside == {}
    end_of(going, {0: half.turn(ask, device_of(experiment, 0, tmp_path))})


def test_who_tells_no_keys_is_not_asked_to_learn(both, experiment, tmp_path):
    server, half = both
    going = server.round(1, {}, [0, 1])
    tells = next(going)
    asks = going.send({1: half.turn(tells[1], device_of(experiment, 1, tmp_path))})
    assert list(asks) == [1]


def test_turns_cross_as_plain_values(both, experiment, tmp_path):
    server, half = both
    _, _, asks = told(server, half, experiment, tmp_path)
    assert from_config(to_config(asks[0].turn), half.turns) == asks[0].turn


@pytest.mark.parametrize(
    ("items", "histories"),
    [([1, 2], [0] * 5), ([-1], [0] * 3), ([30], [0] * 3), ([1], [0, 0, 30]), ([1], [0, -2, 0])],
)
def test_keys_that_are_none_are_refused_by_device(both, items, histories):
    going = both[0].round(1, {}, [3])
    next(going)
    beside = {"item": torch.tensor(items), "history": torch.tensor(histories)}
    with pytest.raises(ValueError, match=r"^device 3 told keys"):
        going.send({3: Answer(3, {}, 1, {}, beside)})


@pytest.mark.parametrize("keeps", ["hard", "soft", "users"])
def test_samples_of_one_class_are_enough_to_train(keeps, tmp_path, monkeypatch):
    by = "users" if keeps == "users" else "samples"
    experiment = experiment_of(f"sieve.keeps={keeps}", f"matching.by={by}")
    load = type(experiment).device_loader

    def liked_alone(self, device):
        found = load(self, device)
        found.own["label"].fill_(1.0)
        return found

    monkeypatch.setattr(type(experiment), "device_loader", liked_alone)
    _, answers = learnt(experiment, tmp_path)
    assert all(answer.beside["scores"][-1] > 0 for answer in answers.values())


ARMS = {
    "cloud": ("method.serves=cloud",),
    "local": ("matching.by=nothing",),
    "random": ("matching.by=random", "sieve.keeps=all"),
    "coarse": ("sieve.keeps=all",),
    "mpda": ("matching.by=users", "sieve.keeps=users"),
    "hard": ("sieve.keeps=hard", "wire.codec=int8"),
    "representation": ("sieve.sees=representation", "sieve.with_profile=true"),
    "soft": ("sieve.keeps=soft", "rounds.count=2", "devices.per_round=2"),
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs_to_its_end(arm, tmp_path):
    run_here(experiment_of(*ARMS[arm]), tmp_path / "run", Display())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= results["final"]["gauc"] <= 1


WRONG = {
    "matching.most=1": "matching.most=1: must leave room for the rows of any user",
    "matching.item_weight=0 matching.features_weight=0 matching.history_weight=0": (
        "matching.history_weight=0: must be above 0"
    ),
    "sieve.keeps=users": "matching.by=samples: must be users with sieve.keeps=users",
    "devices.profiles=phones_two_widths": (
        "devices.profiles=phones_two_widths: tiers[2].co_share=0.5: must be 1 with"
    ),
    "model.user_ids=true": "model.user_ids=true: not with method.name=coda",
    "method.report_kept=true data.name=movielens": "method.report_kept=true: not with data.name",
    "method.report_kept=true method.serves=cloud": "method.report_kept=true: needs devices",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_what_does_not_go_together_is_refused_in_a_line(overrides):
    with pytest.raises(ConfError) as error:
        check_devices(experiment_of(*overrides.split()))
    assert str(error.value).startswith(WRONG[overrides])
    assert "\n" not in str(error.value)
