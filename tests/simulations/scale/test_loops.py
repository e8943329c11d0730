from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dccl_flower.config_loading import load_conf
from dccl_flower.image_config import RoundsConf, with_submodels
from dccl_flower.models.build import build_device_modules
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.scale.loops import loop, measure, take_turn

SMALL = ["devices.per_round=2", "rounds.count=2", "rounds.local_steps=1", "rounds.lr=0.1"]


class Counting(nn.Linear):
    """A linear layer that keeps how large its batches were."""

    def __init__(self):
        super().__init__(2, 3, bias=False)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return super().forward(x)


def samples(count):
    torch.manual_seed(0)
    return torch.randn(count, 2), torch.arange(count) % 3


@pytest.mark.parametrize(
    ("count", "steps", "sizes"),
    [
        (6, 3, [2, 2, 2]),
        (6, 5, [2, 2, 2, 2, 2]),
        (5, 4, [2, 2, 2, 2]),  # batches of a single sample are left out
    ],
)
def test_a_turn_takes_its_steps_epoch_after_epoch(count, steps, sizes):
    co = Counting()
    rounds = RoundsConf(local_steps=steps, device_batch_size=2)
    take_turn(co, co.state_dict(), samples(count), rounds)
    assert co.sizes == sizes


def test_a_step_is_that_of_sgd_from_the_weights_that_were_loaded():
    co, (images, labels) = Counting(), samples(4)
    start = {"weight": torch.ones(3, 2)}
    rounds = RoundsConf(local_steps=1, device_batch_size=4, lr=0.5, weight_decay=0.0)
    after = take_turn(co, start, (images, labels), rounds)
    weight = torch.ones(3, 2, requires_grad=True)
    functional.cross_entropy(images @ weight.T, labels).backward()
    torch.testing.assert_close(after["weight"], torch.ones(3, 2) - 0.5 * weight.grad)
    assert torch.equal(start["weight"], torch.ones(3, 2))


def test_the_logits_of_the_control_are_added():
    co, (images, labels) = Counting(), samples(4)
    control = nn.Linear(2, 3).requires_grad_(False)
    rounds = RoundsConf(local_steps=1, device_batch_size=4, lr=0.5, weight_decay=0.0)
    after = take_turn(co, {"weight": torch.zeros(3, 2)}, (images, labels), rounds, control)
    weight = torch.zeros(3, 2, requires_grad=True)
    functional.cross_entropy(control(images) + images @ weight.T, labels).backward()
    torch.testing.assert_close(after["weight"], -0.5 * weight.grad)


def test_the_loop_meters_rounds_with_and_without_the_mimic():
    experiment = open_experiment(load_conf("digits", SMALL))
    conf, images = with_submodels(experiment.conf), experiment.images
    _, mimic = build_device_modules(conf, images.shape, images.num_classes)
    result = loop(experiment, mimic.eval())
    assert list(result["rounds"]) == ["none", "mimic"]
    for costs in result["rounds"].values():
        assert [(cost["turns"], cost["bytes"]) for cost in costs] == [(2, 0), (2, 0)]
        assert all(cost["cpu"] > 0 and cost["wall"] > 0 for cost in costs)
    assert result["rss_mb"] > 50


def test_a_measurement_without_control_measures_the_mimic_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    overrides = [*SMALL, "control=none", "runtime.reuse=true", "pretrain.epochs=1"]
    experiment = open_experiment(load_conf("digits", [*overrides, "distil.epochs=1"]))
    assert [cost["turns"] for cost in measure(experiment)["rounds"]["mimic"]] == [2, 2]
