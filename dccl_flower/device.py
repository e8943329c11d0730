"""One device's side of a round: train the co-submodel on private samples under a control."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from flwr.client import NumPyClient
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.checkpoint import to_bytes
from dccl_flower.data.loader import ImageLoader, Loader, endless
from dccl_flower.device_store import DeviceStore
from dccl_flower.learning.batch_statistics import OtherSide
from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.evaluate import accuracy, predict
from dccl_flower.learning.head_tuning import head_gradient
from dccl_flower.learning.losses import Loss, make_loss
from dccl_flower.learning.samples import (
    class_counts,
    num_samples,
    replayed_counts,
    with_exemplars,
)
from dccl_flower.memory import peak_rss_mb
from dccl_flower.models.frozen import copy_frozen, exchanged_state, load_exchanged
from dccl_flower.models.served import ServedModel
from dccl_flower.models.zoo import find_head
from dccl_flower.seeds import isolated_rng, torch_generator

BLOBS = ("mimic", "exemplars")
EMPTY = to_bytes({})
Arrays = list[np.ndarray]
Metrics = dict[str, Any]


class DcCclClient(NumPyClient):
    """A device of DC-CCL; which device it plays stands in each message's config.

    ``load_data`` gives a device id's private batches (images, labels), e.g. a DataLoader. ``store``
    is the folder where control and exemplars are kept between rounds. ``control`` has the mimic's
    architecture, unless the strategy's cloud says otherwise. The modules are scratch
    space: a simulation worker may hand the same ones to all its devices.
    """

    def __init__(
        self,
        co_submodel: nn.Module,
        control: nn.Module,
        load_data: Callable[[int], Loader],
        store: str | os.PathLike[str],
        torch_device: torch.device | str = "cpu",
    ) -> None:
        self._co = co_submodel.to(torch_device)
        self._control = control.to(torch_device)
        self._load_data = load_data
        self._store = DeviceStore(store)
        self._torch_device = torch_device
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
        """Return the co-submodel's exchanged arrays, in the order of its state."""
        return [tensor.detach().cpu().numpy() for tensor in exchanged_state(self._co).values()]

    def fit(self, parameters: Arrays, config: Metrics) -> tuple[Arrays, int, Metrics]:
        """Take one round's steps and return the arrays, the sample count and metrics.

        Raises ValueError for a blob that is missing or fails its SHA-256.
        """
        with self._turn(parameters, config, "train"):
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
                other=OtherSide(
                    load_safetensors(config.get("statistics-cloud", EMPTY)),
                    config.get("own-share", 1.0),
                ),
            )
            metrics: Metrics = {"loss": train_loss, "accuracy": train_accuracy}
            if config.get("tell-class-counts", False):
                metrics["class-counts"] = class_counts(loader, self._num_classes).tolist()
        if momentum is not None:
            self._store.keep(config["device"], "momentum", to_bytes(momentum))
        metrics["peak-rss-mb"] = peak_rss_mb()
        return self.get_parameters({}), num_samples(loader), metrics

    def head_gradient(
        self, parameters: Arrays, config: Metrics
    ) -> tuple[dict[str, np.ndarray], int]:
        """Return the last layer's gradient by name, and its sample count; nothing is trained."""
        with self._turn(parameters, config, "head"):
            loader, exemplars = self._load_data(config["device"]), self._exemplars(config)
            gradient, count = head_gradient(
                self._co,
                self._control,
                self._batches(loader, exemplars, config, "head"),
                self._loss(loader, exemplars, config),
                config["steps"],
                self._torch_device,
            )
        return {name: tensor.numpy() for name, tensor in gradient.items()}, count

    def evaluate(self, parameters: Arrays, config: Metrics) -> tuple[float, int, Metrics]:
        """Score control + co on the device's own samples."""
        with self._turn(parameters, config, "evaluate"):
            model = ServedModel(self._control, self._co)
            loader = self._load_data(config["device"])
            logits, labels = predict(model, loader, self._torch_device)
        loss = functional.cross_entropy(logits, labels).item()
        return loss, len(labels), {"accuracy": accuracy(logits, labels)}

    def _turn(
        self, parameters: Arrays, config: Metrics, purpose: str
    ) -> AbstractContextManager[None]:
        """Load what the message brought and return the scope of the turn's random draws."""
        for kind in BLOBS:
            if kind in config:
                self._store.put(config["device"], config[f"{kind}-sha256"], config[kind])
        control = self._store.get(config["device"], config["mimic-sha256"])
        self._control.load_state_dict(load_safetensors(control))
        self._control.requires_grad_(False)
        copy_frozen(self._control, self._co)
        tensors = map(torch.from_numpy, parameters)
        load_exchanged(self._co, dict(zip(exchanged_state(self._co), tensors, strict=True)))
        return isolated_rng(config["seed"], *_turn_keys(config, purpose), "torch")

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
    ) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch_generator(config["seed"], *_turn_keys(config, purpose))
        batches = endless(loader, generator)
        if exemplars is None:
            return batches
        augment = loader.augment if isinstance(loader, ImageLoader) else "none"
        return with_exemplars(batches, exemplars, generator, augment)

    def _loss(self, loader: Loader, exemplars: dict[str, Tensor] | None, config: Metrics) -> Loss:
        def counts() -> Tensor:
            own = class_counts(loader, self._num_classes)
            return own if exemplars is None else replayed_counts(own, exemplars)

        return make_loss(config["loss"], counts)


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
