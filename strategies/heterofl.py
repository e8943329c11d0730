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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dccl_flower.data.batches import Batches
from dccl_flower.device import Device
from dccl_flower.image_config import ImageConf
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.learning.batch_statistics import is_statistic
from dccl_flower.learning.controlled import round_recipe
from dccl_flower.learning.fusion import Fusion, State, average
from dccl_flower.learning.widths import level
from dccl_flower.method import Answer, Ask, Kinds, MethodKind, Round, true_ones
from dccl_flower.models.build import Shape, build_base
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.strategies.exchange import asks_by_width, copies_of, devices_of
from dccl_flower.strategies.plain import PlainDevice, ServedAlone, Train, base_model, served_alone


@dataclass(frozen=True)
class Measure:
    """Tell the batch statistics of the device's samples in the whole model."""

    width: float = 1.0


class HeteroFL(ServedAlone):
    """The server's half."""

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Train in all widths, average each entry over its holders, then measure statistics."""
        recipe, whole = round_recipe(self.rounds, number), state

        def train(share: float) -> Ask:
            return Ask(self.widths.part_of(whole, share), Train(recipe, share))

        answers = yield asks_by_width(devices, self.fleet, train)
        trained = average(None, level(copies_of(answers.values()), state), 0.0)
        held = {name: tensor for name, tensor in state.items() if is_statistic(name)}
        state = trained | held
        if not held:
            return state
        measuring = Ask(state, Measure(), like=held, brings="statistics")
        answers = yield dict.fromkeys(devices_of(answers.values()), measuring)
        return state | Fusion(pooled_statistics=True)(None, copies_of(answers.values()), 0.0)


class HeteroFLDevice(PlainDevice):
    """A device's half."""

    turns: Sequence[type] = (Train, Measure)

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Train with scaled modules, or measure without training."""
        model = self.model(ask.turn.width, device)
        if isinstance(ask.turn, Train):
            with scaled(model, ask.turn.width):
                return super().turn(ask, device)
        exchanged = self.exchanged(model)
        exchanged.load(ask.state)
        with device.isolated("measure"):
            measure_static(model, device.batches, self._torch_device)
        measured = {n: t for n, t in exchanged.snapshot().items() if is_statistic(n)}
        return Answer(device.number, measured, device.batches.num_samples)


@torch.no_grad()
def measure_static(model: nn.Module, batches: Batches, torch_device: torch.device | str) -> None:
    """Let batch norms hold the plain average of their batches' statistics, in place."""
    usual = {norm: norm.momentum for norm in model.modules() if isinstance(norm, _BatchNorm)}
    model.eval()
    for norm in usual:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average, in torch's words
        norm.train()
    for images, _ in batches:
        model(images.to(torch_device))
    for norm, momentum in usual.items():
        norm.momentum = momentum
    model.eval()


@contextmanager
def scaled(model: nn.Module, share: float) -> Iterator[None]:
    """Divide what convolutions give in training by the share of the width, inside the block."""

    def divide(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output / share if module.training else output

    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    hooks = [each.register_forward_hook(divide) for each in convolutions if share != 1]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def kinds(experiment: ImageExperiment) -> Kinds:
    """Return what passes: statistics only of models that have some."""
    has_some = any(map(is_statistic, exchanged_state(base_model(experiment))))
    return Kinds({"model"}, true_ones(model=True, statistics=has_some))


def trained(
    conf: ImageConf, shape: Shape, num_classes: int, states: Mapping[str, State]
) -> dict[str, nn.Module]:
    """Return the whole model."""
    return served_alone(build_base(conf, shape, num_classes, fetch=False), states)


HETEROFL = MethodKind(
    ImageConf,
    ImageExperiment.open,
    lambda experiment, _: HeteroFL(base_model(experiment), experiment),
    lambda experiment: HeteroFLDevice(base_model(experiment, fetch=False), experiment.torch_device),
    lambda experiment: HeteroFL(base_model(experiment), experiment).workload(),
    kinds=kinds,
    trained=trained,
)
