"""HeteroFL, Diao, Ding and Tarokh, arXiv 2010.01264: each device trains the width it can bear.

    server    base model ── leading channels, by tier ──> device: train, modules scaled
                  ^                                            │
                  ├── each entry averaged over its holders <───┘
                  └── batch statistics, measured once the weights are joined

There is no cloud copy. Batch norms train with the statistics of their batch alone and send none;
the statistics that serve are asked for afterwards (static batch norm). While it trains, what a
convolution gives is divided by the share of the width, so that widths go together (scaler).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dccl_flower.config import Conf
from dccl_flower.data.batches import Batches
from dccl_flower.device import Device
from dccl_flower.experiment import Experiment
from dccl_flower.fleet.profiles import fleet_of
from dccl_flower.fleet.tiers import Workload
from dccl_flower.learning.batch_statistics import is_statistic
from dccl_flower.learning.controlled import round_recipe
from dccl_flower.learning.fusion import Fusion, State, average
from dccl_flower.learning.widths import Widths, level
from dccl_flower.method import Answer, Ask, MethodKind, OnProgress, Round
from dccl_flower.models.build import build_base
from dccl_flower.models.frozen import exchanged_state, load_exchanged
from dccl_flower.strategies.answers import copies_of, devices_of
from dccl_flower.strategies.fedavg import FedAvg, workload_of
from dccl_flower.strategies.plain import PlainDevice, Train


@dataclass(frozen=True)
class Measure:
    """Tell the batch statistics of the device's samples in the whole model."""

    width: float = 1.0


class HeteroFL(FedAvg):
    """The server's half."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(_base(experiment), experiment)
        self._fleet, self._widths = fleet_of(experiment.conf), _widths(experiment, self.model)

    def workload(self) -> Workload:
        """Return what a turn takes a device."""
        return replace(super().workload(), widths=self._widths)

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Train in all widths, average each entry over its holders, then measure statistics."""
        recipe = round_recipe(self.rounds, number)
        parts = {share: self._widths.part_of(state, share) for share in self._widths.modules}
        asks = {share: Ask(part, Train(recipe, share)) for share, part in parts.items()}
        answers = yield {device: asks[self._share(device)] for device in devices}
        trained = average(None, level(copies_of(answers.values()), state), 0.0)
        state = {name: state[name] if is_statistic(name) else trained[name] for name in state}
        held = {name: tensor for name, tensor in state.items() if is_statistic(name)}
        if not held:
            return state
        measuring = Ask(state, Measure(), like=held, brings="statistics")
        answers = yield dict.fromkeys(devices_of(answers.values()), measuring)
        return state | Fusion(pooled_statistics=True)(None, copies_of(answers.values()), 0.0)

    def _share(self, device: int) -> float:
        return 1.0 if self._fleet is None else self._fleet.tier_of(device).co_share


class HeteroFLDevice(PlainDevice):
    """A device's half."""

    turns: Sequence[type] = (Train, Measure)

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Train, or measure without training."""
        if isinstance(ask.turn, Train):
            return super().turn(ask, device)
        model = self.model(ask.turn.width, device)
        load_exchanged(model, ask.state)
        with device.isolated("measure"):
            measure_static(model, device.batches, self._torch_device)
        state = exchanged_state(model)
        measured = {n: t.detach().cpu() for n, t in state.items() if is_statistic(n)}
        return Answer(device.number, measured, device.batches.num_samples)


@torch.no_grad()
def measure_static(model: nn.Module, batches: Batches, torch_device: torch.device | str) -> None:
    """Let batch norms hold the plain average of their batches' statistics, in place."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    usual = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average, in torch's words
        norm.train()
    for images, _ in batches:
        model(images.to(torch_device))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    model.eval()


def scaled(model: nn.Module, share: float) -> nn.Module:
    """Divide what convolutions give by the share, in training only, and return the model."""
    if share != 1 and not getattr(model, "is_scaled", False):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(_Scaler(share))
        model.is_scaled = True  # type: ignore[assignment]
    return model


@dataclass(frozen=True)
class _Scaler:
    share: float

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output / self.share if module.training else output


def _base(experiment: Experiment) -> nn.Module:
    return build_base(experiment.conf, experiment.images.shape, experiment.images.num_classes)


def _widths(experiment: Experiment, base: nn.Module) -> Widths:
    fleet = fleet_of(experiment.conf)
    shares = {1.0} if fleet is None else {tier.co_share for tier in fleet.tiers}
    return Widths(base, torch.zeros(2, *experiment.images.shape), shares)


def _server(experiment: Experiment, on_progress: OnProgress) -> HeteroFL:
    return HeteroFL(experiment)


def _device(experiment: Experiment) -> HeteroFLDevice:
    return HeteroFLDevice(_base(experiment), experiment.torch_device, scaled)


def _check(experiment: Experiment) -> Workload:
    base = _base(experiment)
    return replace(workload_of(experiment, base), widths=_widths(experiment, base))


HETEROFL = MethodKind(Conf, _server, _device, _check)
