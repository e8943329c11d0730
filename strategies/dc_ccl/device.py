"""A device's half of DC-CCL: train the co-submodel on private samples under a control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.data.batches import Batches, FixedBatches, Pair, endless
from dccl_flower.device import Device
from dccl_flower.device_store import Parcel
from dccl_flower.learning.batch_statistics import OtherSide
from dccl_flower.learning.control_logits import KnownBatch, control_logits, with_logits
from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.evaluate import accuracy, predict
from dccl_flower.learning.exemplars import class_counts, replayed_counts, with_exemplars
from dccl_flower.learning.fusion import Fusion, State
from dccl_flower.learning.head_tuning import FLOOR_ALONE, HeadPrivacy, head_gradient, head_part
from dccl_flower.learning.losses import LOSSES, Loss
from dccl_flower.learning.widths import leading
from dccl_flower.method import Answer, Ask
from dccl_flower.models.frozen import copy_frozen
from dccl_flower.models.head import find_head
from dccl_flower.models.served import ServedModel
from dccl_flower.strategies.exchange import CLASS_COUNTS, merge_answers
from dccl_flower.strategies.plain import PlainDevice

EXEMPLARS = "exemplars"
HEAD_SAMPLES = "head-samples"  # how many are behind a head gradient; 0 says that none is given
# What the modules of this process hold, so that a frozen control is read once and not each turn.
_LOADED: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Train:
    """Train the co-submodel, of a share of its width, under the control.

    ``own_share`` is this side's in mixed batch statistics. ``fusion`` is how a worker merges copies
    of devices that share a message.
    """

    recipe: LocalRecipe
    loss: str
    keep_momentum: bool
    tell_class_counts: bool
    own_share: float
    fusion: Fusion
    width: float


@dataclass(frozen=True)
class TuneHead:
    """Give the head's mean gradient over so many batches, in one of the round's tuning steps."""

    batches: int
    loss: str
    step: int
    width: float = 1.0


@dataclass(frozen=True)
class Score:
    """Score control + co on the device's own samples."""

    width: float


class DcCclDevice(PlainDevice):
    """Trains, under a control, in the modules that it is given, one device after the other.

    ``control`` has the mimic's architecture, unless the strategy's cloud says otherwise. The
    modules are scratch space: a simulation worker may hand the same ones to all its devices.
    ``cache_logits`` keeps the control's logits of a device's images, where nothing changes them.
    ``head`` names the layer that gives the co-submodel's logits, where it cannot be found.
    ``head_privacy`` is what is done to its gradient before that goes up.
    """

    turns: Sequence[type] = (Train, TuneHead, Score)

    def __init__(
        self,
        co_submodel: nn.Module,
        control: nn.Module,
        torch_device: torch.device | str = "cpu",
        cache_logits: bool = True,
        head: str | None = None,
        head_privacy: HeadPrivacy = FLOOR_ALONE,
    ) -> None:
        super().__init__(co_submodel, torch_device)
        self._control = control.to(torch_device)
        self._cache_logits = cache_logits
        self._head = head
        self._head_privacy = head_privacy

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Load what the ask brought, and answer it."""
        co = self.model(ask.turn.width, device)
        self._load_control(ask.keep)
        copy_frozen(self._control, co)
        self.exchanged(co).load(ask.state)
        if isinstance(ask.turn, Train):
            return self._train(co, ask.turn, ask, device)
        if isinstance(ask.turn, TuneHead):
            return self._head_gradient(co, ask.turn, ask, device)
        return self._score(co, device)

    def merge(self, turn: Train, answers: Sequence[Answer]) -> Answer:
        """Return devices' copies as the one that fuses as they would one by one."""
        return merge_answers(answers, turn.fusion)

    def _train(self, co: nn.Module, turn: Train, ask: Ask, device: Device) -> Answer:
        exchanged, exemplars = self.exchanged(co), _exemplars(ask)
        of_cloud = leading(ask.beside.get("statistics_cloud", {}), exchanged.state)
        with device.isolated("train"):
            momentum = (device.memory.kept("momentum") or {}) if turn.keep_momentum else None
            train_loss, train_accuracy = train_controlled(
                co,
                self._control,
                self._batches(ask, device, exemplars),
                self._loss(turn.loss, co, device, exemplars),
                turn.recipe,
                self._torch_device,
                correction=ask.beside.get("correction"),
                momentum=momentum,
                other=OtherSide(of_cloud, turn.own_share),
            )
            told = {}
            if turn.tell_class_counts:
                told[CLASS_COUNTS] = self._class_counts(co, device)
        if momentum is not None:
            device.memory.keep("momentum", momentum)
        metrics = {"loss": train_loss, "accuracy": train_accuracy}
        return Answer(
            device.number, exchanged.snapshot(), device.batches.num_samples, metrics, told
        )

    def _head_gradient(self, co: nn.Module, turn: TuneHead, ask: Ask, device: Device) -> Answer:
        own, held = self._head_privacy, device.batches.num_samples
        if held < own.floor:
            nothing = {n: torch.zeros_like(t) for n, t in head_part(co, ask.state).items()}
            return Answer(device.number, nothing, held, {}, {HEAD_SAMPLES: torch.tensor([0])})
        exemplars = _exemplars(ask)
        with device.isolated("head", turn.step):
            gradient, count = head_gradient(
                co,
                self._control,
                _pairs(device.batches, exemplars, device.generator("head", turn.step)),
                self._loss(turn.loss, co, device, exemplars),
                turn.batches,
                self._torch_device,
            )
        gradient = own.covered(gradient, device.generator("head noise", turn.step))
        return Answer(device.number, gradient, count, {}, {HEAD_SAMPLES: torch.tensor([held])})

    def _score(self, co: nn.Module, device: Device) -> Answer:
        with device.isolated("evaluate"):
            model = ServedModel(self._control, co)
            logits, labels = predict(model, device.batches, self._torch_device)
        loss = functional.cross_entropy(logits, labels).item()
        metrics = {"loss": loss, "accuracy": accuracy(logits, labels)}
        return Answer(device.number, {}, len(labels), metrics)

    def _load_control(self, keep: Mapping[str, Parcel]) -> None:
        parcels = _control_parcels(keep)
        digests = [parcel.digest for parcel in parcels]
        if _LOADED.get(self._control) == digests:
            return
        _LOADED.pop(self._control, None)
        held = {name: tensor for parcel in parcels for name, tensor in parcel.state().items()}
        self._control.load_state_dict(held)
        self._control.requires_grad_(False)
        _LOADED[self._control] = digests

    def _batches(
        self, ask: Ask, device: Device, exemplars: State | None
    ) -> Iterator[Pair | KnownBatch]:
        batches, generator = device.batches, device.generator("train")
        if exemplars is None and self._cache_logits and batches.is_fixed:
            fixed = cast(FixedBatches, batches)
            return with_logits(fixed, self._known_logits(fixed, ask, device), generator)
        return _pairs(batches, exemplars, generator)

    def _known_logits(self, batches: FixedBatches, ask: Ask, device: Device) -> Tensor:
        """Return the control's logits of the device's images, computed at their first use."""
        digest = "-".join(parcel.digest[:16] for parcel in _control_parcels(ask.keep))
        name = f"logits-{digest}-{batches.content_digest()}"
        kept = device.memory.kept(name, of_all_runs=True)
        if kept is None:
            kept = {"logits": control_logits(self._control, batches, self._torch_device)}
            device.memory.keep(name, kept, of_all_runs=True)
        return kept["logits"]

    def _loss(self, name: str, co: nn.Module, device: Device, exemplars: State | None) -> Loss:
        def counts() -> Tensor:
            own = self._class_counts(co, device)
            return own if exemplars is None else replayed_counts(own, exemplars)

        return LOSSES[name](counts)

    def _class_counts(self, co: nn.Module, device: Device) -> Tensor:
        return class_counts(device.batches, find_head(co, name=self._head)[1].out_features)


def _pairs(batches: Batches, exemplars: State | None, generator: torch.Generator) -> Iterator[Pair]:
    if exemplars is None:
        return endless(batches, generator)
    return with_exemplars(batches, exemplars, generator)


def _control_parcels(keep: Mapping[str, Parcel]) -> list[Parcel]:
    return [parcel for name, parcel in keep.items() if name != EXEMPLARS]


def _exemplars(ask: Ask) -> State | None:
    return ask.keep[EXEMPLARS].state() if EXEMPLARS in ask.keep else None
