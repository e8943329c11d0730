"""MetaPatch's device half: it makes the cloud's model its own, and scores it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor

from dccl_flower.codecs import State
from dccl_flower.data.samples import Samples, count
from dccl_flower.device import Device
from dccl_flower.interaction_experiment import InteractionExperiment
from dccl_flower.learning.metapatch import distil_model, distil_patches, fit_vector, proxy
from dccl_flower.learning.recommend import FitRecipe, Logits, fit, predict
from dccl_flower.method import Answer, Ask
from dccl_flower.models.frozen import Exchanged
from dccl_flower.strategies.metapatch.conf import conf_of
from dccl_flower.strategies.metapatch.parts import MODEL, VECTOR, Parts, copied
from dccl_flower.strategies.ranked import device_scores

ADAPTED, WHOLE, TEACHER = "adapted", "whole-patches", "teacher"


@dataclass(frozen=True)
class Adapt:
    """Make the model the device's own, and score it so; the vector goes up, where there is one."""

    recipe: FitRecipe
    top_k: int


@dataclass(frozen=True)
class Score:
    """Score the model as the cloud has it, or under its proxy of the device's patches."""

    top_k: int
    by_proxy: bool


@dataclass(frozen=True)
class StageOne:
    """Train the model on the device's own samples; without teachers on their labels alone."""

    recipe: FitRecipe
    has_teachers: bool


@dataclass(frozen=True)
class StageTwo:
    """Train bases and encoder on the device's own samples; the model comes beside them."""

    recipe: FitRecipe


Turn = Adapt | Score | StageOne | StageTwo


class MetaPatchDevice:
    """Adapts and scores, in modules that all devices of a process share.

    Of one round to the next a device keeps its vector, or its whole patches; and what its own
    model makes of its own samples, for stages that run on devices.
    """

    turns: Sequence[type] = (Adapt, Score, StageOne, StageTwo)

    def __init__(self, experiment: InteractionExperiment) -> None:
        conf = conf_of(experiment)
        self._by, self._settings = conf.adaptation.by, conf.cloud.distillation()
        self._parts = Parts(experiment, experiment.recommender())
        self._untrained = deepcopy(self._parts.whole.state_dict())

    def state_like(self, turn: Turn, device: Device) -> State:
        """Return names and shapes of the state that comes with a turn."""
        return self._brought(turn).state

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Load what the ask brought, and answer it."""
        self._brought(ask.turn).load(ask.state)
        match ask.turn:
            case Adapt():
                return self._adapt(ask.turn, device)
            case Score():
                return self._score(ask.turn, device)
            case StageOne():
                return self._learn_model(ask.turn, device)
            case _:
                # What comes beside a state has lost the order of its names on the way.
                brought, alone = ask.beside[MODEL], self._parts.alone
                alone.load({name: brought[name] for name in alone.state})
                return self._learn_patches(ask.turn, device)

    def merge(self, turn: Turn, answers: Sequence[Answer]) -> Answer:
        """Raise ValueError: each device has a model of its own."""
        raise ValueError("answers of devices with models of their own do not merge")

    def _brought(self, turn: Turn) -> Exchanged:
        match turn:
            case Adapt():
                return self._parts.deployed
            case Score(by_proxy=True):
                return self._parts.proxy
            case StageTwo():
                return self._parts.taught
            case _:
                return self._parts.alone

    def _score(self, turn: Score, device: Device) -> Answer:
        scoring = device.own.scoring
        logits: Logits = self._parts.model
        if turn.by_proxy:
            vector = _adapted(device)[VECTOR].expand(count(scoring), -1)
            scoring = scoring | {VECTOR: vector}
            logits = proxy(self._parts.model, self._parts.patches, self._parts.encoder)
        scores = device_scores(logits, scoring, turn.top_k)
        return Answer(device.number, {}, count(scoring), {}, scores)

    def _adapt(self, turn: Adapt, device: Device) -> Answer:
        vector: State = {}
        if self._parts.has_vectors:
            vector = {VECTOR: self._fit_vector(turn.recipe, device)}
            logits = self._parts.patched(vector[VECTOR])
        else:
            logits = self._fit_weights(turn.recipe, device)
        scores = device_scores(logits, device.own.scoring, turn.top_k)
        return Answer(device.number, vector, count(device.own.own), {}, scores)

    def _fit_vector(self, recipe: FitRecipe, device: Device) -> Tensor:
        own, parts, kept = device.own.own, self._parts, device.memory.kept(ADAPTED)
        generator, start = device.generator("adapt"), kept[VECTOR] if kept else None
        vector = fit_vector(parts.model, parts.patches, own, recipe, generator, start)
        told = {VECTOR: vector, TEACHER: predict(parts.patched(vector), own)}
        device.memory.keep(ADAPTED, told)
        return vector

    def _fit_weights(self, recipe: FitRecipe, device: Device) -> Logits:
        own, model, whole = device.own.own, self._parts.model, self._parts.whole
        generator = device.generator("adapt")
        if self._by == "fine_tuning":
            fit(model, model.parameters(), own, recipe, generator)
        if self._by != "patches":
            return model
        whole.load_state_dict(device.memory.kept(WHOLE) or self._untrained)
        change = whole.change()

        def logits(samples: Samples) -> Tensor:
            return model(samples, change)

        fit(logits, whole.parameters(), own, recipe, generator)
        device.memory.keep(WHOLE, whole.state_dict())
        return logits

    def _learn_model(self, turn: StageOne, device: Device) -> Answer:
        own, model, generator = device.own.own, self._parts.model, device.generator("stage 1")
        if turn.has_teachers:
            teacher = _adapted(device)[TEACHER]
            loss = distil_model(model, own, teacher, turn.recipe, self._settings, generator)
        else:
            loss = fit(model, model.parameters(), own, turn.recipe, generator)
        return Answer(device.number, copied(self._parts.alone), count(own), {"loss": loss})

    def _learn_patches(self, turn: StageTwo, device: Device) -> Answer:
        own, parts, adapted = device.own.own, self._parts, _adapted(device)
        loss = distil_patches(
            parts.model,
            parts.patches,
            parts.encoder,
            own,
            adapted[VECTOR].expand(count(own), -1),
            adapted[TEACHER],
            turn.recipe,
            self._settings,
            device.generator("stage 2"),
        )
        return Answer(device.number, copied(parts.taught), count(own), {"loss": loss})


def _adapted(device: Device) -> State:
    """Return the device's vector, and what its own model made of its samples."""
    kept = device.memory.kept(ADAPTED)
    if kept is None:
        raise ValueError(f"device {device.number} has not adapted the model, and cannot teach")
    return kept
