"""Bounds: models trained on what one place holds. No device is ever asked.

``method.model=co`` trains the co-submodel on the samples of both sides under the configuration's
control, as many steps as a side takes in all rounds; ``base`` the uncut base model, on the samples
of both sides or of the cloud alone; ``cloud_submodel`` and ``mimic`` are ready once the cloud is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from dccl_flower.config import ConfError, MethodConf, section
from dccl_flower.data.batches import Pair, endless
from dccl_flower.data.loader import ImageLoader
from dccl_flower.experiment import Experiment
from dccl_flower.fleet.tiers import Workload
from dccl_flower.learning.controlled import round_recipe, train_controlled
from dccl_flower.learning.exemplars import class_counts
from dccl_flower.learning.fusion import State
from dccl_flower.learning.losses import LOSSES
from dccl_flower.learning.pretrain import pretrain
from dccl_flower.method import Method, MethodKind, OnProgress, Round
from dccl_flower.models.build import build_base
from dccl_flower.models.frozen import load_exchanged
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies.dc_ccl.conf import DcCclConf, conf_of
from dccl_flower.strategies.dc_ccl.kind import DC_CCL, build_server
from dccl_flower.strategies.dc_ccl.method import DcCclServer
from dccl_flower.strategies.plain import ServedAlone


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

    Momentum runs through and batch norms see mixed batches: rounds only tell the rate.
    """

    experiment: Experiment

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Take a round's steps; nobody is asked."""
        yield from ()
        cloud, conf = self.cloud, conf_of(self.experiment)
        load_exchanged(cloud.co_submodel, state)
        with isolated_rng(conf.seed, "central", "round", number, "torch"):
            train_controlled(
                cloud.co_submodel,
                cloud.control,
                self._batches,
                LOSSES[conf.loss](lambda: class_counts(self._loader, cloud.num_classes)),
                round_recipe(self.rounds, number),
                self.experiment.torch_device,
                momentum=self._momentum,
            )
        return cloud.co_state()

    @cached_property
    def _momentum(self) -> State:
        return {}

    @cached_property
    def _loader(self) -> ImageLoader:
        """Batches as large as all of a round's together."""
        rounds, cohort = conf_of(self.experiment).rounds, self.experiment.cohort_size
        size = rounds.cloud_batch_size + cohort * rounds.device_batch_size
        return self.experiment.pooled_loader(size)

    @cached_property
    def _batches(self) -> Iterator[Pair]:
        return endless(self._loader, torch_generator(self.experiment.conf.seed, "central"))


class Prepared(DcCclServer):
    """A model that is ready once the cloud is, and a reference: its scores are what all have."""

    reference: str

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Change nothing."""
        yield from ()
        return state

    def scores(self, state: State) -> Iterator[tuple[str, float]]:
        """Yield the reference's scores, but for what tells only how close it comes to another."""
        references = self.references()
        for name, value in references[self.reference].items():
            if all(name in scores for scores in references.values()):
                yield name, value


class Base(ServedAlone):
    """The uncut base model, trained before the first round."""

    def prepare(self) -> None:
        """Train the base model."""
        experiment, conf = self.experiment, conf_of(self.experiment)
        size = conf.pretrain.batch_size
        is_pooled = _method(experiment).data == "pooled"
        loader = experiment.pooled_loader(size) if is_pooled else experiment.cloud_loader(size)
        generator = torch_generator(conf.seed, "base")
        with isolated_rng(conf.seed, "base", "torch"):
            held = (experiment.validation_loader(), experiment.compute)
            pretrain(self.model, loader, conf.pretrain, generator, *held)

    def plan(self, num_rounds: int) -> None:
        """Take no note: rounds change nothing."""

    def workload(self) -> Workload:
        """Raise ConfError: no device is ever asked."""
        raise ConfError("method.name=central: no device takes a turn")

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Change nothing."""
        yield from ()
        return state


def _method(experiment: Experiment) -> CentralMethodConf:
    assert isinstance(experiment.conf, CentralConf)
    return experiment.conf.method


def _server(experiment: Experiment, on_progress: OnProgress) -> Method:
    model = _method(experiment).model
    if model == "base":
        return Base(
            build_base(conf_of(experiment), experiment.images.shape, experiment.images.num_classes),
            experiment,
        )
    if model == "co":
        pooled = build_server(experiment, on_progress, PooledCo)
        pooled.experiment = experiment
        return pooled
    prepared = build_server(experiment, on_progress, Prepared)
    prepared.reference = model
    return prepared


def _check(experiment: Experiment) -> None:
    DC_CCL.check(experiment)


CENTRAL = MethodKind(CentralConf, _server, DC_CCL.device, _check)
