"""What methods share whose devices train one model by plain cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dccl_flower.data.batches import Batches, endless
from dccl_flower.device import Device
from dccl_flower.experiment import Experiment
from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.evaluate import predict, score_sides
from dccl_flower.learning.fusion import Fusion, State
from dccl_flower.learning.widths import of_width
from dccl_flower.method import Answer, Ask
from dccl_flower.models.control import NoControl
from dccl_flower.models.frozen import Exchanged, exchanged_state, load_exchanged
from dccl_flower.strategies.answers import merge_answers


@dataclass(frozen=True)
class Train:
    """Train the model, of a share of its width."""

    recipe: LocalRecipe
    width: float = 1.0


class PlainDevice:
    """Trains what it is sent; ``adapted`` changes a model of a share of the width for good."""

    turns: Sequence[type] = (Train,)

    def __init__(
        self,
        model: nn.Module,
        torch_device: torch.device | str = "cpu",
        adapted: Callable[[nn.Module, float], nn.Module] = lambda model, width: model,
    ) -> None:
        self._model = model.to(torch_device)
        self._torch_device = torch_device
        self._adapted = adapted

    def state_like(self, turn: Any, device: Device) -> State:
        """Return names and shapes of the model of the width that a turn names."""
        return exchanged_state(self.model(turn.width, device))

    def model(self, width: float, device: Device) -> nn.Module:
        """Return the model of a share of the width, which all devices of a process train in."""
        cut = of_width(self._model, width, lambda: device.example().to(self._torch_device))
        return self._adapted(cut, width)

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Train a copy of what was sent."""
        model = self.model(ask.turn.width, device)
        load_exchanged(model, ask.state)
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
        state = Exchanged(model).snapshot()
        metrics = {"loss": loss, "accuracy": accuracy}
        return Answer(device.number, state, device.batches.num_samples, metrics)

    def merge(self, turn: Any, answers: Sequence[Answer]) -> Answer:
        """Return the copies' average."""
        return merge_answers(answers, Fusion())


class ServedAlone:
    """The server's half of one model that serves as it is: its scores, and what is saved."""

    def __init__(self, model: nn.Module, experiment: Experiment) -> None:
        self.model = model.to(experiment.torch_device)
        self.experiment = experiment
        self.rounds = experiment.conf.rounds
        self._test: Batches = experiment.scoring_loader()

    def prepare(self) -> None:
        """Do nothing: there is nothing to prepare."""

    def initial_state(self) -> State:
        """Return the model's first weights."""
        state = exchanged_state(self.model)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

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
