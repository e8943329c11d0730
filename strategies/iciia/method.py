"""ICIIA's server half, and how both halves are made from a configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch

from dccl_flower.config import ConfError
from dccl_flower.device_store import Parcel
from dccl_flower.fleet.profiles import refuse_widths
from dccl_flower.fleet.tiers import Workload
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.learning.client_attention import Client, seen_by
from dccl_flower.learning.controlled import round_recipe
from dccl_flower.learning.fusion import State, average
from dccl_flower.method import (
    Answer,
    Ask,
    Kinds,
    MethodKind,
    Numbers,
    OnProgress,
    Round,
    Served,
    true_ones,
)
from dccl_flower.models.frozen import Exchanged
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies.exchange import copies_of, devices_of
from dccl_flower.strategies.iciia.adaptations import Sight, adaptation_of
from dccl_flower.strategies.iciia.backbone import build_backbone, load_weights
from dccl_flower.strategies.iciia.cloud import (
    MODULE,
    client_rows,
    clients_of,
    kept_module,
    train_module,
)
from dccl_flower.strategies.iciia.conf import IciiaConf, conf_of
from dccl_flower.strategies.iciia.device import (
    BACKBONE,
    CORRECT,
    IciiaDevice,
    Score,
    Train,
    correct_of,
)
from dccl_flower.strategies.iciia.load import Held

LISTED = 5
SCORED = ("served", "backbone", "oracle")
logger = logging.getLogger("dccl_flower")


class Iciia:
    """The server's half: it trains once, and then asks what devices have right."""

    def __init__(self, experiment: ImageExperiment, on_progress: OnProgress) -> None:
        self.experiment = experiment
        self.conf = conf_of(experiment)
        self.rounds = self.conf.rounds
        self.backbone = build_backbone(experiment)
        self.adaptation = adaptation_of(self.conf.adaptation)
        with isolated_rng(self.conf.seed, "init", "adaptation"):
            module = self.adaptation.module(self.backbone, self.conf.devices.count)
        self.module = module.to(experiment.torch_device)
        self._exchanged = Exchanged(self.module)
        self._on_progress = on_progress
        self._is_prepared = False
        self._accuracies: dict[str, float] = {}

    @property
    def held(self) -> Held:
        """What a device holds."""
        return Held(self.experiment, self.backbone, self.module)

    @property
    def is_federated(self) -> bool:
        """Tell whether devices train the module."""
        return self.conf.method.training == "federated"

    def prepare(self) -> None:
        """Train the backbone, and on its features the module; only once."""
        if self._is_prepared:
            return
        key = load_weights(self.backbone, self.experiment, self._on_progress)
        if not self.is_federated:
            given = (self.adaptation, self.backbone, self.experiment, self._on_progress)
            train = partial(train_module, self.module, *given)
            kept_module(key, self.module, self.experiment, train)
        self._is_prepared = True

    def prepared(self) -> dict[str, State]:
        """Return backbone and module."""
        return {BACKBONE: self.backbone.state_dict(), MODULE: self.module.state_dict()}

    def adopt(self, prepared: Mapping[str, State]) -> None:
        """Take over backbone and module."""
        self.backbone.load_state_dict(prepared[BACKBONE])
        self.module.load_state_dict(prepared[MODULE])
        self._is_prepared = True

    def memory(self) -> dict[str, State]:
        """Return what the last round came to."""
        values = self._accuracies.items()
        return {CORRECT: {name: torch.tensor(v, dtype=torch.float64) for name, v in values}}

    def remember(self, memory: Mapping[str, State]) -> None:
        """Take over what the last round came to."""
        self._accuracies = {name: value.item() for name, value in memory[CORRECT].items()}

    def initial_state(self) -> State:
        """Return the module where devices train it; else nothing goes round."""
        if not self.is_federated:
            return {}
        return {name: tensor.clone() for name, tensor in self._exchanged.snapshot().items()}

    def plan(self, num_rounds: int) -> None:
        """Let the schedule of rates follow the number of rounds."""
        self.rounds = replace(self.rounds, count=num_rounds)

    def workload(self) -> Workload:
        """Return what a turn takes a device. Raises ConfError for tiers of another width."""
        refuse_widths(self.conf)
        return lambda share: self.held.turn_load(self.rounds)

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Have devices train the module where that is federated, then score what they meet."""
        if self.conf.method.serves == "cloud":  # where the images are seen, too
            yield from ()
            return state
        parcels = {BACKBONE: self._parcel}
        if self.is_federated:
            recipe = round_recipe(self.rounds, number)
            train = Train(recipe, self.conf.adaptation.batch_size)
            answers = yield dict.fromkeys(devices, Ask(state, train, keep=parcels))
            state = average(None, copies_of(answers.values()), 0.0)
            devices = devices_of(answers.values())
        score = Score(self.conf.adaptation.serving(), self.is_federated)
        if not self.is_federated:
            parcels[MODULE] = Parcel.of(self.module.state_dict())
        wants = {CORRECT: Numbers(len(SCORED))}
        ask = Ask(state, score, keep=parcels, like={}, wants=wants, brings="scores")
        if there := self._with_images(devices):
            answers = yield dict.fromkeys(there, ask)
            if answers:  # by a clock it may be that none of those who answer has an image
                self._tally(answers.values())
        return state

    def scores(self, state: State) -> Iterator[tuple[str, float]]:
        """Yield the accuracy over what devices met in the last round; before the first, nothing."""
        if self.conf.method.serves == "cloud" and not self._accuracies:
            self._tally(self._served_here())
        if self._accuracies:
            yield "accuracy", self._accuracies["served"]

    def references(self) -> Mapping[str, Mapping[str, float]]:
        """Return the accuracy of the backbone alone, and told which classes a device holds."""
        return {
            name: {"accuracy": value}
            for name, value in self._accuracies.items()
            if name != "served"
        }

    def state_dict(self, state: State) -> dict[str, State]:
        """Return backbone and module."""
        if self.is_federated:
            self._exchanged.load(state)
        states = {BACKBONE: self.backbone.state_dict(), MODULE: self.module.state_dict()}
        return {role: state for role, state in states.items() if state}

    @cached_property
    def _parcel(self) -> Parcel:
        return Parcel.of(self.backbone.state_dict())

    def _with_images(self, devices: Sequence[int]) -> list[int]:
        """Return those that have an image to score; the log tells of the others."""
        there = [d for d in devices if self.experiment.device_test_loader(d).num_samples]
        if none := sorted(set(devices) - set(there)):
            some = ", ".join(map(str, none[:LISTED])) + (", ..." if none[LISTED:] else "")
            logger.warning("%d devices have no image to score: %s", len(none), some)
        return there

    def _tally(self, answers: Iterable[Answer]) -> None:
        given = [(answer.beside[CORRECT], answer.count) for answer in answers]
        correct, count = (sum(each) for each in zip(*given, strict=True))
        shares = (torch.as_tensor(correct) / count).tolist()
        self._accuracies = dict(zip(SCORED, shares, strict=True))

    def _served_here(self) -> Iterator[Answer]:
        """Score every device's images as a cloud that sees them would."""
        experiment, torch_device = self.experiment, self.experiment.torch_device
        for number in self._with_images(range(self.conf.devices.count)):
            new = seen_by(self.backbone, experiment.device_test_loader(number), torch_device)
            sight = Sight(
                number,
                new,
                experiment.device_loader(number).targets,
                partial(self._own, number),
                torch_generator(self.conf.seed, "score", number),
                self.conf.adaptation.serving(),
            )
            correct = correct_of(self.adaptation, self.module, sight)
            yield Answer(number, {}, len(new.labels), {}, {CORRECT: correct})

    def _own(self, device: int) -> Client:
        rows = self.experiment.plan.devices[device]
        return clients_of([rows], self.backbone, self.experiment)[0]


def build_device(experiment: ImageExperiment) -> IciiaDevice:
    """Build a device's half."""
    conf, backbone = conf_of(experiment), build_backbone(experiment, fetch=False)
    adaptation = adaptation_of(conf.adaptation)
    with isolated_rng(conf.seed, "init", "adaptation"):
        module = adaptation.module(backbone, conf.devices.count)
    return IciiaDevice(
        backbone, module, adaptation, experiment.device_test_loader, experiment.torch_device
    )


def check(experiment: ImageExperiment) -> Workload | None:
    """Return what a turn takes a device, None where the cloud serves.

    Raises ConfError for what does not go together.
    """
    conf = conf_of(experiment)
    workload = Iciia(experiment, lambda *_: None).workload()
    if conf.method.training == "cloud" and conf.adaptation.by in ("attention", "feed_forward"):
        client_rows(experiment)
    count = conf.devices.count
    if not any(experiment.device_test_loader(d).num_samples for d in range(count)):
        raise ConfError(f"devices.count={count}: no device has an image to score")
    return workload if conf.method.serves == "device" else None


def served(experiment: ImageExperiment) -> Served:
    """Return backbone and adaptation with what each is given for a batch of images."""
    return Iciia(experiment, lambda *_: None).held.served()


def kinds(experiment: ImageExperiment) -> Kinds:
    """Return what passes: the module goes round where devices train it, else down once."""
    conf = conf_of(experiment)
    if conf.method.serves == "cloud":
        return Kinds(frozenset(), frozenset())
    trains = conf.method.training == "federated"
    down = {"model", BACKBONE} | (set() if trains else {MODULE})
    return Kinds(down, true_ones(model=trains, scores=True), {CORRECT})


ICIIA = MethodKind(IciiaConf, ImageExperiment.open, Iciia, build_device, check, served, kinds)
