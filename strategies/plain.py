"""What methods share whose devices train one model by plain cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional

from dccl_flower.data.batches import endless
from dccl_flower.device import Device
from dccl_flower.fleet.profiles import co_shares, fleet_of
from dccl_flower.fleet.tiers import Workload
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.evaluate import predict, score_sides
from dccl_flower.learning.fusion import Fusion, State
from dccl_flower.learning.widths import Widths, of_width
from dccl_flower.method import Answer, Ask
from dccl_flower.models.build import build_base
from dccl_flower.models.control import NoControl
from dccl_flower.models.frozen import Exchanged, exchanged_state, load_exchanged
from dccl_flower.strategies.exchange import merge_answers
from dccl_flower.strategies.loads import in_steps


@dataclass(frozen=True)
class Train:
    """Train the model, of a share of its width."""

    recipe: LocalRecipe
    width: float = 1.0


class PlainDevice:
    """Trains what it is sent."""

    turns: Sequence[type] = (Train,)

    def __init__(self, model: nn.Module, torch_device: torch.device | str = "cpu") -> None:
        self._model = model.to(torch_device)
        self._torch_device = torch_device
        self._exchanged: WeakKeyDictionary[nn.Module, Exchanged] = WeakKeyDictionary()

    def state_like(self, turn: Any, device: Device) -> State:
        """Return names and shapes of the model of the width that a turn names."""
        return self.exchanged(self.model(turn.width, device)).state

    def model(self, width: float, device: Device) -> nn.Module:
        """Return the model of a share of the width, which all devices of a process train in."""
        return of_width(self._model, width, lambda: device.example().to(self._torch_device))

    def exchanged(self, model: nn.Module) -> Exchanged:
        """Return what crosses the wire of a model, looked up once: it would cost each turn."""
        if model not in self._exchanged:
            self._exchanged[model] = Exchanged(model)
        return self._exchanged[model]

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Train a copy of what was sent."""
        model = self.model(ask.turn.width, device)
        self.exchanged(model).load(ask.state)
        with device.isolated("train"):
            batches = endless(device.batches, device.generator("train"))
            loss, accuracy = train_controlled(
                model,
                NoControl(model),
                batches,
                functional.cross_entropy,
                ask.turn.recipe,
                self._torch_device,
            )
        metrics = {"loss": loss, "accuracy": accuracy}
        state = self.exchanged(model).snapshot()
        return Answer(device.number, state, device.batches.num_samples, metrics)

    def merge(self, turn: Any, answers: Sequence[Answer]) -> Answer:
        """Return the copies' average."""
        return merge_answers(answers, Fusion())


def base_model(experiment: ImageExperiment, fetch: bool = True) -> nn.Module:
    """Build the uncut base model of a configuration; a device need not ``fetch`` weights."""
    images = experiment.images
    return build_base(experiment.conf, images.shape, images.num_classes, fetch)


def served_alone(model: nn.Module, states: Mapping[str, State]) -> dict[str, nn.Module]:
    """Return a model with the weights that a run of :class:`ServedAlone` has left."""
    model.load_state_dict(states["model"])
    return {"served": model}


class ServedAlone:
    """The server's half of one model that serves as it is: all but the rounds."""

    def __init__(self, model: nn.Module, experiment: ImageExperiment) -> None:
        self.model = model
        self.experiment = experiment
        self.rounds = experiment.conf.rounds
        self.fleet = fleet_of(experiment.conf)
        self._test = experiment.scoring_loader()

    @cached_property
    def widths(self) -> Widths:
        """The model in all widths that devices train."""
        return Widths(self.model, self.experiment.example, co_shares(self.fleet))

    def prepare(self) -> None:
        """Move the model to where it is scored."""
        self.model.to(self.experiment.torch_device)

    def initial_state(self) -> State:
        """Return the model's first weights."""
        state = exchanged_state(self.model)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def plan(self, num_rounds: int) -> None:
        """Let the schedule of rates follow the number of rounds."""
        self.rounds = replace(self.rounds, count=num_rounds)

    def workload(self) -> Workload:
        """Return what a turn takes a device."""
        return in_steps(self.rounds, self.widths, self.experiment.example)

    def scores(self, state: State) -> Iterator[tuple[str, float]]:
        """Yield accuracies over all classes and over those of either side."""
        load_exchanged(self.model, state)
        logits, labels = predict(self.model, self._test, self.experiment.torch_device)
        yield from asdict(score_sides(logits, labels, *self.experiment.classes)).items()

    def references(self) -> Mapping[str, Mapping[str, float]]:
        """Return none."""
        return {}

    def state_dict(self, state: State) -> dict[str, State]:
        """Return the model."""
        load_exchanged(self.model, state)
        return {"model": self.model.state_dict()}
