"""Bounds: models trained on what one place holds. No device is ever asked.

``method.model=co`` trains the co-submodel on the samples of both sides under the configuration's
control, as many steps as a side takes in all rounds; ``base`` the uncut base model, on the samples
of both sides or of the cloud alone; ``cloud_submodel`` and ``mimic`` are ready once the cloud is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Literal, cast

import torch
from torch import nn

from dccl_flower.config import MethodConf, section
from dccl_flower.data.batches import endless
from dccl_flower.fleet.tiers import Workload
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.learning.controlled import round_recipe, train_controlled
from dccl_flower.learning.exemplars import class_counts
from dccl_flower.learning.fusion import State
from dccl_flower.learning.losses import LOSSES
from dccl_flower.learning.pretrain import pretrain
from dccl_flower.method import Method, MethodKind, OnProgress, Round
from dccl_flower.models.build import Shape, build_base
from dccl_flower.models.frozen import load_exchanged
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies.dc_ccl import kind as dc_ccl
from dccl_flower.strategies.dc_ccl.conf import DcCclConf, conf_of
from dccl_flower.strategies.dc_ccl.method import DcCclServer
from dccl_flower.strategies.plain import ServedAlone, base_model, served_alone

MODEL, MOMENTUM, TAKEN = "model", "momentum", "taken"
OF_TWO_SIDES = (
    *("normalisation", "fusion", "head_tuning", "exemplars"),
    *("rounds.scaffold", "rounds.keep_momentum", "rounds.server_momentum"),
)

logger = logging.getLogger("dccl_flower")


@dataclass
class CentralMethodConf(MethodConf):
    """Which model is trained, and on whose samples."""

    model: Literal["co", "base", "cloud_submodel", "mimic"] = "co"
    data: Literal["pooled", "cloud"] = "pooled"


@dataclass
class CentralConf(DcCclConf):
    """The sections of DC-CCL, whose bounds these are."""

    method: CentralMethodConf = section(CentralMethodConf)


class PooledCo(DcCclServer):
    """The co-submodel on pooled samples: a federation's round, with everything in one place.

    Batches are as large as all of a round's together. Momentum runs through and batch norms see
    mixed batches: rounds only tell the rate.
    """

    def __init__(self, experiment: ImageExperiment, *of_dc_ccl: Any) -> None:
        super().__init__(*of_dc_ccl)
        conf = conf_of(experiment)
        of_devices = experiment.cohort_size * conf.rounds.device_batch_size
        loader = experiment.pooled_loader(conf.rounds.cloud_batch_size + of_devices)
        self._loss = LOSSES[conf.loss](lambda: class_counts(loader, self.cloud.num_classes))
        self._batches = endless(loader, torch_generator(conf.seed, "central"))
        self._taken = 0
        self._momentum: State = {}
        self._experiment = experiment

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Take a round's steps; nobody is asked."""
        yield from ()
        co, recipe = self.cloud.co_submodel, round_recipe(self.rounds, number)
        load_exchanged(co, state)
        with isolated_rng(self._experiment.conf.seed, "central", "round", number, "torch"):
            train_controlled(
                co,
                self.cloud.control,
                self._batches,
                self._loss,
                recipe,
                self._experiment.torch_device,
                momentum=self._momentum,
            )
        self._taken += recipe.steps
        return self.cloud.co_state()

    def memory(self) -> dict[str, State]:
        """Return the momentum, and how many batches have been taken."""
        return {MOMENTUM: self._momentum, TAKEN: {TAKEN: torch.tensor(self._taken)}}

    def remember(self, memory: Mapping[str, State]) -> None:
        """Take over the momentum, and pass over the batches that have been taken."""
        self._momentum, self._taken = dict(memory[MOMENTUM]), int(memory[TAKEN][TAKEN])
        for _ in range(self._taken):
            next(self._batches)


def _change_nothing(method: Method, number: int, state: State, devices: Sequence[int]) -> Round:
    """Ask nobody, and end a round with the state that it began with."""
    yield from ()
    return state


class Prepared(DcCclServer):
    """A model that is ready once the cloud is, and a reference: its scores are what all have."""

    round = _change_nothing

    def __init__(self, reference: str, *of_dc_ccl: Any) -> None:
        super().__init__(*of_dc_ccl)
        self._reference = reference

    def scores(self, state: State) -> Iterator[tuple[str, float]]:
        """Yield the reference's scores, but for what tells only how close it comes to another."""
        references = self.references()
        for name, value in references[self._reference].items():
            if all(name in scores for scores in references.values()):
                yield name, value


class Base(ServedAlone):
    """The uncut base model, trained before the first round."""

    round = _change_nothing
    is_trained = False

    def __init__(self, experiment: ImageExperiment, on_progress: OnProgress) -> None:
        super().__init__(base_model(experiment), experiment)
        self._on_epoch = partial(on_progress, "pretrain")

    def prepare(self) -> None:
        """Train the base model; only once."""
        if self.is_trained:
            return
        experiment, conf = self.experiment, conf_of(self.experiment)
        is_pooled = _method(experiment).data == "pooled"
        loader_of = experiment.pooled_loader if is_pooled else experiment.cloud_loader
        loader, held_out = loader_of(conf.pretrain.batch_size), experiment.validation_loader()
        with isolated_rng(conf.seed, "base", "torch"):
            generator = torch_generator(conf.seed, "base")
            how = (generator, held_out, experiment.compute, self._on_epoch)
            pretrain(self.model, loader, conf.pretrain, *how)
        self.is_trained = True

    def prepared(self) -> dict[str, State]:
        """Return the model."""
        return {MODEL: self.model.state_dict()}

    def adopt(self, prepared: Mapping[str, State]) -> None:
        """Take over the model."""
        self.model.load_state_dict(prepared[MODEL])
        self.is_trained = True

    def memory(self) -> dict[str, State]:
        """Return nothing."""
        return {}

    def remember(self, memory: Mapping[str, State]) -> None:
        """Do nothing."""

    def workload(self) -> Workload:
        """Return what a turn of DC-CCL takes: the virtual clock is that of the other bounds."""
        return dc_ccl.check(self.experiment)


def _method(experiment: ImageExperiment) -> CentralMethodConf:
    assert isinstance(experiment.conf, CentralConf)
    return experiment.conf.method


def idle_options(conf: CentralConf) -> list[str]:
    """Return what a configuration sets that is of two sides, and so changes no bound."""
    usual, found = CentralConf(), []
    for key in OF_TWO_SIDES:
        value = attrgetter(key)(conf)
        if value != attrgetter(key)(usual) and not str(value).startswith("group"):
            found.append(f"{key}={str(value).lower()}")
    return found


def _server(experiment: ImageExperiment, on_progress: OnProgress) -> Method:
    model = _method(experiment).model
    if idle := idle_options(cast(CentralConf, experiment.conf)):
        logger.warning("%s: no effect with method.name=central", ", ".join(idle))
    if model == "base":
        return Base(experiment, on_progress)
    kind = partial(PooledCo, experiment) if model == "co" else partial(Prepared, model)
    return dc_ccl.build_server(experiment, on_progress, kind)


def _check(experiment: ImageExperiment) -> None:
    dc_ccl.check(experiment)


def _trained(
    conf: CentralConf, shape: Shape, num_classes: int, states: Mapping[str, State]
) -> Mapping[str, nn.Module]:
    if conf.method.model == "base":
        return served_alone(build_base(conf, shape, num_classes, fetch=False), states)
    return dc_ccl.trained(conf, shape, num_classes, states)


CENTRAL = MethodKind(
    CentralConf,
    ImageExperiment.open,
    _server,
    dc_ccl.build_device,
    _check,
    trained=_trained,
)
