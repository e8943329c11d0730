from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from dccl_flower.config_loading import load_conf
from dccl_flower.image_config import RoundsConf, with_submodels
from dccl_flower.models.build import build_device_modules
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.scale import workload
from dccl_flower.simulations.scale.workload import (
    RoundCost,
    RoundMeter,
    co_submodel,
    device_samples,
    draw_cohort,
    per_turn,
    train,
)


@pytest.fixture(scope="module")
def experiment():
    return open_experiment(load_conf("digits", ["devices.per_round=4"]))


def test_a_turn_costs_the_mean_of_all_turns():
    costs = [RoundCost(3.0, 6.0, 4, 2, 400), RoundCost(1.0, 2.0, 4, 0, 0)]
    assert per_turn(costs) == {
        "cpu_s": 0.5,
        "wall_s": 1.0,
        "bytes": 50.0,
        "new_share": 0.25,
        "turns": 8,
    }
    assert per_turn([]) is None


def test_rounds_are_cut_where_they_end(monkeypatch):
    cpu, wall = itertools.count(10.0, 2.0), itertools.count(100.0, 3.0)
    monkeypatch.setattr(workload.time, "process_time", lambda: next(cpu))
    monkeypatch.setattr(workload.time, "perf_counter", lambda: next(wall))
    meter = RoundMeter(5)
    meter.begin()
    meter.end_round()
    meter.end_round()
    assert [(cost.cpu, cost.wall, cost.turns) for cost in meter.costs] == [(2, 3, 5)] * 2


def test_the_co_submodel_is_that_of_the_devices_with_weights(experiment):
    co = co_submodel(experiment)
    conf, images = with_submodels(experiment.conf), experiment.images
    on_devices, _ = build_device_modules(conf, images.shape, images.num_classes)
    shapes = [(name, tensor.shape) for name, tensor in co.state_dict().items()]
    assert shapes == [(name, tensor.shape) for name, tensor in on_devices.state_dict().items()]
    assert all(torch.any(p != 0) for name, p in co.named_parameters() if "weight" in name)


def test_samples_are_a_devices_own_in_order(experiment):
    images, labels = device_samples(experiment, 3)
    loader = experiment.device_loader(3)
    assert torch.equal(labels, loader.targets)
    assert len(images) == loader.num_samples
    first, _ = next(iter(loader))
    assert torch.equal(images[: len(first)], first)


def test_a_cohort_is_drawn_without_replacement_anew_each_round(experiment):
    cohorts = [draw_cohort(experiment, number) for number in range(1, 6)]
    for cohort in cohorts:
        assert len(set(cohort)) == 4
        assert set(cohort) <= set(range(10))
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    assert cohorts == [draw_cohort(experiment, number) for number in range(1, 6)]


def test_the_optimizer_is_fresh_and_leaves_frozen_parts_alone(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    model[0].requires_grad_(False)
    optimizers, steps = [], []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(self))
    batches = [(torch.ones(2, 2), torch.tensor([0, 1]))] * 2
    for _ in range(2):
        train(model, batches, RoundsConf(lr=0.3, momentum=0.7, weight_decay=0.2))
        optimizers.append(steps[-1])
        (group,) = steps[-1].param_groups
        assert [len(group["params"]), group["lr"], group["momentum"], group["weight_decay"]] == [
            *(2, 0.3, 0.7, 0.2)
        ]
    assert len(steps) == 4
    assert optimizers[0] is not optimizers[1]
