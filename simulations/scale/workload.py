"""The turn that every system of ``dccl scale`` takes, and what a turn costs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.image_config import RoundsConf, with_submodels
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.models.build import Parts
from dccl_flower.seeds import numpy_generator
from dccl_flower.simulations.experiment import cached_experiment

Samples = tuple[Tensor, Tensor]


def image_experiment(conf_path: str) -> ImageExperiment:
    """Return the experiment of a run, built once a process."""
    experiment = cached_experiment(conf_path, "")
    assert isinstance(experiment, ImageExperiment)
    return experiment


@dataclass(frozen=True)
class RoundCost:
    """What one round took: CPU-seconds, wall seconds, bytes, and how many turns.

    ``new`` counts the turns of devices that had not taken part before.
    """

    cpu: float
    wall: float
    turns: int
    new: int = 0
    bytes: int = 0


class RoundMeter:
    """Cut this process's time into rounds of ``turns`` turns, each of a new device."""

    def __init__(self, turns: int) -> None:
        self.costs: list[RoundCost] = []
        self._turns = turns
        self.begin()

    def begin(self) -> None:
        """Begin a round."""
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def end_round(self) -> None:
        """End a round and begin the next."""
        cpu, wall = self._cpu, self._wall
        self.begin()
        cost = RoundCost(self._cpu - cpu, self._wall - wall, self._turns, self._turns)
        self.costs.append(cost)


def process_costs(
    rounds: Mapping[str, Sequence[RoundCost]], first_turn_at: float
) -> dict[str, Any]:
    """Return what a job gives back that took its turns in this process: rounds are by control."""
    return {
        "rounds": {control: [asdict(cost) for cost in costs] for control, costs in rounds.items()},
        "first_turn_at": first_turn_at,
        "rss_mb": psutil.Process().memory_info().rss / 1e6,
    }


def per_turn(costs: Sequence[RoundCost]) -> dict[str, Any] | None:
    """Return what a turn of these rounds took on average, or None where there are none."""
    turns = sum(cost.turns for cost in costs)
    if turns == 0:
        return None
    fields = {"cpu_s": "cpu", "wall_s": "wall", "bytes": "bytes", "new_share": "new"}
    means = {
        name: sum(getattr(cost, field) for cost in costs) / turns for name, field in fields.items()
    }
    return {**means, "turns": turns}


def co_submodel(experiment: ImageExperiment) -> nn.Module:
    """Build the co-submodel with its first weights."""
    conf, images = with_submodels(experiment.conf), experiment.images
    return Parts(conf, images.shape, images.num_classes).co


def device_samples(experiment: ImageExperiment, device: int) -> Samples:
    """Return a device's images (N, C, H, W), normalised, and labels (N,)."""
    images, labels = zip(*experiment.device_loader(device), strict=True)
    return torch.cat(images), torch.cat(labels)


def draw_cohort(experiment: ImageExperiment, server_round: int) -> list[int]:
    """Return the devices of one round."""
    conf, size = experiment.conf, experiment.cohort_size
    draw = numpy_generator(conf.seed, "scale", "round", server_round)
    chosen: list[int] = draw.choice(conf.devices.count, size, replace=False).tolist()
    return chosen


def train(
    net: nn.Module, batches: Iterable[Samples], rounds: RoundsConf, control: nn.Module | None = None
) -> None:
    """Take a step of a fresh SGD on each batch of images and labels.

    ``control`` is a frozen module whose logits are added, as in DC-CCL.
    """
    net.train()
    optimizer = torch.optim.SGD(
        [parameter for parameter in net.parameters() if parameter.requires_grad],
        lr=rounds.lr,
        momentum=rounds.momentum,
        weight_decay=rounds.weight_decay,
    )
    for images, labels in batches:
        logits = net(images)
        if control is not None:  # which is frozen, so that no gradient is kept of it
            logits = logits + control(images)
        optimizer.zero_grad()
        functional.cross_entropy(logits, labels).backward()
        optimizer.step()
