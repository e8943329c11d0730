from __future__ import annotations

import pytest
import torch
from small_worlds import small_world

from dccl_flower.device_store import DeviceStore
from dccl_flower.in_process import InProcess
from dccl_flower.method import find_method
from dccl_flower.simulations.arms.arms import arm_conf, load_arms
from dccl_flower.simulations.experiment import open_experiment, roster_of

ARMS = load_arms("metapatch")
QUICK = ("adaptation.rank=4", "adaptation.bottleneck=2", "cloud.stage_2.epochs=1")


def ran(experiment, folder):
    """Run all rounds; return the state, the scores after each round, and the bytes by kind."""
    kind, scores = find_method("metapatch"), []
    server = kind.server(experiment, lambda *_: None)
    roster, store = roster_of(experiment.conf), DeviceStore(folder)
    engine = InProcess(server, kind.device(experiment), roster, experiment.device_loader, store)
    state = engine.run(
        experiment.conf.rounds.count,
        lambda number, state, facts: scores.append(dict(server.scores(state))),
    )
    return state, scores, engine.traffic.totals


@pytest.mark.parametrize("arm", ARMS.arms)
def test_every_arm_runs_and_scores_each_round(arm, tmp_path):
    conf = small_world("dccl_world", *QUICK).conf
    experiment = open_experiment(arm_conf(ARMS, arm, conf, 0))
    state, scores, bytes_by = ran(experiment, tmp_path)
    assert [list(each) for each in scores] == [[], *[["gauc", "hit", "ndcg", "mrr"]] * 2]
    assert all(0 <= each["gauc"] <= 1 for each in scores[1:])
    raw_on_cloud = experiment.conf.method.raw_samples == "cloud"
    up = {kind for kind in bytes_by if kind.endswith("_up")}
    if raw_on_cloud:
        assert up == ({"vector_up"} if experiment.conf.adaptation.by == "metapatch" else set())
    if "vector_up" in up:
        assert bytes_by["vector_up"] == 2 * 6 * 4 * 4  # rounds, devices, numbers, bytes
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_rounds_are_the_same_for_a_seed_and_others_for_another(tmp_path):
    runs = [ran(small_world("dccl_world", *QUICK), tmp_path / str(i))[0] for i in range(2)]
    other = ran(small_world("dccl_world", *QUICK, "seed=1"), tmp_path / "other")[0]
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert not torch.equal(runs[0]["patches.bases.0"], other["patches.bases.0"])


def test_some_devices_a_round_and_another_model(tmp_path):
    options = ("devices.per_round=2", "model.name=sasrec", "model.hidden=[8,8]", "wire.codec=fp16")
    state, scores, bytes_by = ran(small_world("dccl_world", *QUICK, *options), tmp_path)
    assert scores[-1]
    assert bytes_by["vector_up"] == 2 * 2 * 4 * 4
    assert any(name.startswith("patches") for name in state)
