"""FedAvg, McMahan et al., arXiv 1602.05629: the small model alone, no cloud copy, no control.

server    model ─────────────> each device: train on private samples
            ^                        │
            └── average by samples <─┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from dccl_flower.config import Conf, CutModelConf
from dccl_flower.experiment import Experiment
from dccl_flower.fleet.tiers import Workload
from dccl_flower.learning.controlled import round_recipe
from dccl_flower.learning.fusion import State, average
from dccl_flower.learning.widths import Widths
from dccl_flower.method import Ask, MethodKind, OnProgress, Round
from dccl_flower.models.build import build_co
from dccl_flower.strategies.answers import copies_of
from dccl_flower.strategies.plain import PlainDevice, ServedAlone, Train


@dataclass
class FedAvgConf(Conf):
    """The model is a slice of the base model, as wide as DC-CCL's co-submodel, or one of its own."""

    model: CutModelConf = field(default_factory=CutModelConf)


class FedAvg(ServedAlone):
    """The server's half."""

    def plan(self, num_rounds: int) -> None:
        """Let the schedule of rates follow the number of rounds."""
        self.rounds = replace(self.rounds, count=num_rounds)

    def workload(self) -> Workload:
        """Return what a turn takes a device."""
        return workload_of(self.experiment, self.model)

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Have every device train a copy, and average the copies by sample count."""
        ask = Ask(state, Train(round_recipe(self.rounds, number)))
        answers = yield dict.fromkeys(devices, ask)
        return average(None, copies_of(answers.values()), 0.0)


def workload_of(experiment: Experiment, model: nn.Module) -> Workload:
    """Return what a turn of plain training takes a device."""
    rounds, example = experiment.conf.rounds, torch.zeros(2, *experiment.images.shape)
    images = rounds.local_steps * rounds.device_batch_size
    widths = Widths(model, example, {1.0})
    return Workload(widths, example, images, rounds.device_batch_size, rounds.momentum > 0)


def _model(experiment: Experiment) -> nn.Module:
    return build_co(experiment.conf, experiment.images.shape, experiment.images.num_classes)


def _server(experiment: Experiment, on_progress: OnProgress) -> FedAvg:
    return FedAvg(_model(experiment), experiment)


def _device(experiment: Experiment) -> PlainDevice:
    return PlainDevice(_model(experiment), experiment.torch_device)


def _check(experiment: Experiment) -> Workload:
    return workload_of(experiment, _model(experiment))


FEDAVG = MethodKind(FedAvgConf, _server, _device, _check)
