from __future__ import annotations

import pytest
import torch
from torch import nn

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.scale import pfl as scale_pfl
from dccl_flower.simulations.scale.pfl import PflModule, cohort_sampler
from dccl_flower.simulations.scale.workload import draw_cohort

SMALL = ["devices.per_round=3", "rounds.count=2", "rounds.local_steps=2"]


@pytest.fixture(scope="module")
def experiment():
    return open_experiment(load_conf("digits", SMALL))


def test_devices_come_cohort_by_cohort(experiment):
    sample = cohort_sampler(experiment)
    drawn = [sample() for _ in range(6)]
    assert sorted(drawn[:3]) == sorted(draw_cohort(experiment, 1))
    assert sorted(drawn[3:]) == sorted(draw_cohort(experiment, 2))


def test_a_module_has_the_loss_and_mode_that_pfl_asks_for():
    module = PflModule(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    nn.init.zeros_(module.classifier[0].weight)
    nn.init.zeros_(module.classifier[0].bias)
    images, labels = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])
    assert module.loss(images, labels).item() == pytest.approx(0.6931, abs=1e-4)
    assert module.training
    module.loss(images, labels, eval=True)
    assert not module.training


def test_pfl_takes_the_same_steps(experiment, monkeypatch):
    pytest.importorskip("pfl", reason="requirements-bench.txt is not installed")
    sizes = []
    loss = PflModule.loss

    def counted(module, images, labels, eval=False):
        if not eval:
            sizes.append(len(labels))
        return loss(module, images, labels, eval)

    monkeypatch.setattr(PflModule, "loss", counted)
    result = scale_pfl.measure(experiment)
    (costs,) = result["rounds"].values()
    assert [cost["turns"] for cost in costs] == [3, 3]
    # One round more is taken beforehand.
    assert sizes == [experiment.conf.rounds.device_batch_size] * (3 * 3 * 2)
