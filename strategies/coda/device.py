"""CoDA's device half: it tells its keys, trains with what they are answered with, and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dccl_flower.codecs import State
from dccl_flower.data.samples import count
from dccl_flower.device import Device
from dccl_flower.interaction_experiment import InteractionExperiment
from dccl_flower.learning.recommend import FitRecipe, fit
from dccl_flower.method import Answer, Ask
from dccl_flower.strategies.coda.shared import KEPT, MATCHED, MODEL, told_keys, unpacked
from dccl_flower.strategies.coda.sieve import Sieve, train_sifted
from dccl_flower.strategies.ranked import device_scores


@dataclass(frozen=True)
class Tell:
    """Tell of which items the device has samples, and what was liked before; not the labels."""


@dataclass(frozen=True)
class Learn:
    """Train the cloud's model on own samples and on those that come along, if any, and score it.

    ``tells_kept``: the weights of the latter go up too, which serves a measurement alone.
    """

    recipe: FitRecipe
    sieve: Sieve
    top_k: int
    tells_kept: bool


@dataclass(frozen=True)
class Score:
    """Score the cloud's model as it is."""

    top_k: int


Turn = Tell | Learn | Score


class CodaDevice:
    """Trains and scores, in a model that all devices of a process share."""

    turns: Sequence[type] = (Tell, Learn, Score)

    def __init__(self, experiment: InteractionExperiment) -> None:
        self._model = experiment.recommender()

    def state_like(self, turn: Turn, device: Device) -> State:
        """Return nothing: the model is kept by hash."""
        return {}

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Answer an ask; the model starts as the cloud's each time."""
        if isinstance(ask.turn, Tell):
            own = device.own.own
            return Answer(device.number, {}, count(own), {}, told_keys(own))
        self._model.load_state_dict(ask.keep[MODEL].state())
        kept: dict[str, Tensor] = {}
        if isinstance(ask.turn, Learn):
            kept = {KEPT: weights} if (weights := self._learn(ask, device)) is not None else {}
        scores = device_scores(self._model, device.own.scoring, ask.turn.top_k)
        return Answer(device.number, {}, count(device.own.scoring), {}, {**scores, **kept})

    def merge(self, turn: Turn, answers: Sequence[Answer]) -> Answer:
        """Raise ValueError: each device has a model of its own."""
        raise ValueError("answers of devices with models of their own do not merge")

    def _learn(self, ask: Ask, device: Device) -> Tensor | None:
        """Train the model in place; return outside samples' weights where these are wanted."""
        turn, own, generator = ask.turn, device.own.own, device.generator("learn")
        if MATCHED not in ask.beside:
            fit(self._model, self._model.parameters(), own, turn.recipe, generator)
            return None
        outside = unpacked(ask.beside[MATCHED])
        weights = train_sifted(self._model, own, outside, turn.sieve, turn.recipe, generator)
        return weights if turn.tells_kept else None
