"""One device's side of a round: train the co-submodel on private samples under a control."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from flwr.client import NumPyClient
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.checkpoint import to_bytes
from dccl_flower.codecs import (
    apply_update,
    decode,
    encode,
    encode_update,
)
from dccl_flower.data.loader import ImageLoader, Loader, endless
from dccl_flower.device_batch import MergedTurns
from dccl_flower.device_store import LACKS, DeviceStore
from dccl_flower.learning.batch_statistics import OtherSide
from dccl_flower.learning.control_logits import (
    content_digest,
    control_logits,
    shows_the_same_images,
    with_logits,
)
from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.evaluate import accuracy, predict
from dccl_flower.learning.fusion import FUSIONS, State
from dccl_flower.learning.head_tuning import head_gradient
from dccl_flower.learning.losses import Loss, make_loss
from dccl_flower.learning.samples import (
    class_counts,
    num_samples,
    replayed_counts,
    with_exemplars,
)
from dccl_flower.learning.widths import leading
from dccl_flower.memory import peak_rss_mb
from dccl_flower.models.frozen import copy_frozen, exchanged_state, load_exchanged
from dccl_flower.models.served import ServedModel
from dccl_flower.models.split import narrow
from dccl_flower.models.zoo import find_head
from dccl_flower.seeds import isolated_rng, torch_generator

BLOBS = ("mimic", "exemplars")
EMPTY = to_bytes({})
Arrays = list[np.ndarray]
Metrics = dict[str, Any]
# What the modules of this process hold, so that a frozen control is read once and not each turn.
_LOADED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_NARROWED: WeakKeyDictionary[nn.Module, dict[float, nn.Module]] = WeakKeyDictionary()


class DcCclClient(NumPyClient):
    """A device of DC-CCL; which device it plays stands in each message's config.

    ``load_data`` gives a device id's private batches (images, labels), e.g. a DataLoader. ``store``
    is the folder where control and exemplars are kept between rounds. ``control`` has the mimic's
    architecture, unless the strategy's cloud says otherwise. The modules are scratch
    space: a simulation worker may hand the same ones to all its devices. ``cache_logits`` keeps
    the control's logits of a device's images, where no augmentation changes them.
    """

    def __init__(
        self,
        co_submodel: nn.Module,
        control: nn.Module,
        load_data: Callable[[int], Loader],
        store: str | os.PathLike[str],
        torch_device: torch.device | str = "cpu",
        cache_logits: bool = True,
    ) -> None:
        self._co = self._wide_co = _placed(co_submodel, torch_device)
        self._control = _placed(control, torch_device)
        self._load_data = load_data
        self._store = DeviceStore(store)
        self._torch_device = torch_device
        self._cache_logits = cache_logits
        self._num_classes = find_head(co_submodel)[1].out_features

    def get_properties(self, config: Metrics) -> Metrics:
        """Tell for each of ``config["devices"]`` whether it holds each blob, asked for by hash."""
        devices = config["devices"]
        return {
            f"holds-{kind}": [self._store.holds(d, config[f"{kind}-sha256"]) for d in devices]
            for kind in BLOBS
            if f"{kind}-sha256" in config
        }

    def get_parameters(self, config: Metrics) -> Arrays:
        """Return the co-submodel's exchanged state, as the wire carries it without compression."""
        return encode("fp32", self._state())

    def fit(self, parameters: Arrays, config: Metrics) -> tuple[Arrays, int, Metrics]:
        """Take one round's steps and return the arrays, the sample count and metrics.

        Where the config names several ``devices`` they are trained one after the other, and what
        returns is their merged copy in float64 and lists of metrics. Raises ValueError for a blob
        that is missing or fails its SHA-256.
        """
        received = self._received(parameters, config)
        if "devices" not in config:
            return self._train(received, config)
        turns = MergedTurns(FUSIONS[config["fusion"]])
        # Before the first turn: a message that fails is sent again, and must leave nobody changed.
        owns = [self._take_blobs({**config, "device": device}) for device in config["devices"]]
        for own in owns:
            update, count, metrics = self._train(received, own)
            turns.add(apply_update(config["codec"], update, received), count, metrics)
        return turns.result()

    def _train(self, received: State, config: Metrics) -> tuple[Arrays, int, Metrics]:
        with self._turn(received, config, "train"):
            loader, exemplars = self._load_data(config["device"]), self._exemplars(config)
            momentum = self._kept_momentum(config)
            train_loss, train_accuracy = train_controlled(
                self._co,
                self._control,
                self._batches(loader, exemplars, config, "train"),
                self._loss(loader, exemplars, config),
                _recipe(config),
                self._torch_device,
                correction=load_safetensors(config.get("correction", EMPTY)),
                momentum=momentum,
                other=self._other_side(config),
            )
            metrics: Metrics = {"loss": train_loss, "accuracy": train_accuracy}
            if config.get("tell-class-counts", False):
                metrics["class-counts"] = class_counts(loader, self._num_classes).tolist()
        if momentum is not None:
            self._store.keep(config["device"], "momentum", to_bytes(momentum))
        metrics["peak-rss-mb"] = peak_rss_mb()
        return self._encoded_update(received, config), num_samples(loader), metrics

    def head_gradient(self, parameters: Arrays, config: Metrics) -> tuple[Arrays, int]:
        """Return the last layer's gradient and its sample count; nothing is trained."""
        with self._turn(self._received(parameters, config), config, "head"):
            loader, exemplars = self._load_data(config["device"]), self._exemplars(config)
            gradient, count = head_gradient(
                self._co,
                self._control,
                self._batches(loader, exemplars, config, "head"),
                self._loss(loader, exemplars, config),
                config["steps"],
                self._torch_device,
            )
        return encode("fp32", gradient), count

    def evaluate(self, parameters: Arrays, config: Metrics) -> tuple[float, int, Metrics]:
        """Score control + co on the device's own samples."""
        with self._turn(self._received(parameters, config), config, "evaluate"):
            model = ServedModel(self._control, self._co)
            loader = self._load_data(config["device"])
            logits, labels = predict(model, loader, self._torch_device)
        loss = functional.cross_entropy(logits, labels).item()
        return loss, len(labels), {"accuracy": accuracy(logits, labels)}

    def _state(self) -> State:
        return {n: tensor.detach().cpu() for n, tensor in exchanged_state(self._co).items()}

    def _received(self, parameters: Arrays, config: Metrics) -> State:
        """Return the state that a message brought, for a co-submodel of the width it names."""
        self._co = self._wide_co  # which another message may have left narrow
        if (share := config.get("co-share", 1.0)) != 1:
            device = config["devices"][0] if "devices" in config else config["device"]
            with isolated_rng(config["seed"], "example"):
                images, _ = next(iter(self._load_data(device)))
            self._co = _narrowed(self._wide_co, images[:2].to(self._torch_device), share)
        return decode(config["codec"], parameters, exchanged_state(self._co))

    def _encoded_update(self, received: State, config: Metrics) -> Arrays:
        """Return what goes up, and keep what its rounding lost for the next round."""
        kept = self._store.kept(config["device"], "residual") if config["codec"] == "int8" else None
        residual = load_safetensors(kept or EMPTY)
        update, residual = encode_update(config["codec"], self._state(), received, residual)
        if residual:
            self._store.keep(config["device"], "residual", to_bytes(residual))
        return update

    def _turn(self, received: State, config: Metrics, purpose: str) -> AbstractContextManager[None]:
        """Load what the message brought and return the scope of the turn's random draws."""
        self._take_blobs(config)
        self._load_control(config["device"], config["mimic-sha256"])
        copy_frozen(self._control, self._co)
        load_exchanged(self._co, received)
        return isolated_rng(config["seed"], *_turn_keys(config, purpose), "torch")

    def _take_blobs(self, config: Metrics) -> Metrics:
        """Keep the blobs that the message brought, and return its config without them.

        Raises ValueError where the device then lacks one that it is to use.
        """
        device = config["device"]
        for kind in BLOBS:
            digest = config.get(f"{kind}-sha256")
            if kind in config:
                self._store.put(device, config[f"{kind}-sha256"], config[kind])
            elif digest is not None and not self._store.holds(device, digest):
                raise ValueError(f"device {device} {LACKS} {digest}")
        return {key: value for key, value in config.items() if key not in BLOBS}

    def _load_control(self, device: int, digest: str) -> None:
        if _LOADED.get(self._control) == digest:
            return
        _LOADED.pop(self._control, None)
        self._control.load_state_dict(load_safetensors(self._store.get(device, digest)))
        self._control.requires_grad_(False)
        _LOADED[self._control] = digest

    def _other_side(self, config: Metrics) -> OtherSide:
        statistics = load_safetensors(config.get("statistics-cloud", EMPTY))
        if statistics:
            statistics = leading(statistics, exchanged_state(self._co))
        return OtherSide(statistics, config.get("own-share", 1.0))

    def _kept_momentum(self, config: Metrics) -> dict[str, Tensor] | None:
        if not config.get("keep-momentum", False):
            return None
        return load_safetensors(self._store.kept(config["device"], "momentum") or EMPTY)

    def _exemplars(self, config: Metrics) -> dict[str, Tensor] | None:
        if "exemplars-sha256" not in config:
            return None
        return load_safetensors(self._store.get(config["device"], config["exemplars-sha256"]))

    def _batches(
        self, loader: Loader, exemplars: dict[str, Tensor] | None, config: Metrics, purpose: str
    ) -> Iterator[tuple[Tensor, ...]]:
        generator = torch_generator(config["seed"], *_turn_keys(config, purpose))
        if exemplars is not None:
            augment = loader.augment if isinstance(loader, ImageLoader) else "none"
            return with_exemplars(endless(loader, generator), exemplars, generator, augment)
        if purpose == "train" and self._cache_logits and shows_the_same_images(loader):
            return with_logits(loader, self._known_logits(loader, config), generator)
        return endless(loader, generator)

    def _known_logits(self, loader: ImageLoader, config: Metrics) -> Tensor:
        """Return the control's logits of the device's images, computed at their first use."""
        name = f"logits-{config['mimic-sha256'][:16]}-{content_digest(loader)}"
        if (kept := self._store.kept(config["device"], name)) is not None:
            return load_safetensors(kept)["logits"]
        logits = control_logits(self._control, loader, self._torch_device)
        self._store.keep(config["device"], name, to_bytes({"logits": logits}))
        return logits

    def _loss(self, loader: Loader, exemplars: dict[str, Tensor] | None, config: Metrics) -> Loss:
        def counts() -> Tensor:
            own = class_counts(loader, self._num_classes)
            return own if exemplars is None else replayed_counts(own, exemplars)

        return make_loss(config["loss"], counts)


def _placed(module: nn.Module, torch_device: torch.device | str) -> nn.Module:
    """Return the module on a device; asking its every tensor to move would cost a millisecond."""
    wanted = torch.device(torch_device)
    placed = all(tensor.device.type == wanted.type for tensor in module.parameters())
    return module if placed else module.to(wanted)


def _narrowed(co: nn.Module, images: Tensor, share: float) -> nn.Module:
    """Return the co-submodel of a narrower tier, cut once a process: cutting takes seconds."""
    made = _NARROWED.setdefault(co, {})
    if share not in made:
        made[share] = narrow(co, images, share)
    return made[share]


def _recipe(config: Metrics) -> LocalRecipe:
    return LocalRecipe(
        steps=config["steps"],
        lr=config["lr"],
        momentum=config["momentum"],
        weight_decay=config["weight-decay"],
        statistics=config["statistics"],
        max_grad_norm=config["max-grad-norm"],
    )


def _turn_keys(config: Metrics, purpose: str) -> tuple[str | int, ...]:
    keys = (purpose, "device", config["device"], "round", config["server-round"])
    return (*keys, config["head-step"]) if "head-step" in config else keys
