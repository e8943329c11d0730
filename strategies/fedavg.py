"""FedAvg, McMahan et al., arXiv 1602.05629: the small model alone, no cloud copy, no control.

server    model ─────────────> each device: train on private samples
            ^                        │
            └── average by samples <─┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from dccl_flower.config import Conf, CutModelConf, section
from dccl_flower.experiment import Experiment
from dccl_flower.fleet.tiers import Workload
from dccl_flower.learning.controlled import round_recipe
from dccl_flower.learning.fusion import State, average
from dccl_flower.learning.widths import Widths
from dccl_flower.method import Ask, MethodKind, OnProgress, Round
from dccl_flower.models.build import build_base
from dccl_flower.models.frozen import Frozen, frozen_names
from dccl_flower.models.split import slice_co
from dccl_flower.models.zoo import build_model
from dccl_flower.strategies.answers import copies_of
from dccl_flower.strategies.plain import PlainDevice, ServedAlone, Train


@dataclass
class FedAvgConf(Conf):
    """The model is DC-CCL's co-submodel: a slice of the base model, or one of its own.

    A shared stem stays whole, and trains as all else does.
    """

    model: CutModelConf = section(CutModelConf)


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
    conf, images = conf_of(experiment), experiment.images
    own = conf.model.co
    if own.name is not None:
        channels = images.shape[0]
        return build_model(own.name, channels, images.num_classes, own.pretrained, conf.seed, "co")
    base, example = (
        build_base(conf, images.shape, images.num_classes),
        torch.zeros(2, *images.shape),
    )
    co = slice_co(base, example, conf.model.co_ratio, conf.model.shared_stem)
    for name in frozen_names(co):
        part = co.get_submodule(name)
        assert isinstance(part, Frozen)
        co.set_submodule(name, part.module.requires_grad_(True))
    return co


def conf_of(experiment: Experiment) -> FedAvgConf:
    """Return the configuration with the sections of FedAvg."""
    assert isinstance(experiment.conf, FedAvgConf)
    return experiment.conf


def _server(experiment: Experiment, on_progress: OnProgress) -> FedAvg:
    return FedAvg(_model(experiment), experiment)


def _device(experiment: Experiment) -> PlainDevice:
    return PlainDevice(_model(experiment), experiment.torch_device)


def _check(experiment: Experiment) -> Workload:
    return workload_of(experiment, _model(experiment))


FEDAVG = MethodKind(FedAvgConf, _server, _device, _check)
