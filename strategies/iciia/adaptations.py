"""What makes a backbone's answers a client's own: attention, and what it is held against."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dccl_flower.config import ConfError
from dccl_flower.learning.client_attention import (
    Client,
    Recipe,
    Serving,
    adapted_logits,
    train_over_clients,
)
from dccl_flower.learning.pretrain import OnEpoch
from dccl_flower.models.attention import ImageAttention
from dccl_flower.models.features import Featured
from dccl_flower.strategies.iciia.conf import AdaptationConf

HELD_OUT = 5  # of so many of a device's own images one decides when to stop


@dataclass(frozen=True)
class Grounds:
    """What the cloud may train on: its simulated clients and others held out, and a generator.

    ``labelled`` gives what devices hold, which only rules that the paper compares with take.
    """

    clients: Callable[[], tuple[list[Client], list[Client]]]
    labelled: Callable[[], list[Client]]
    generator: torch.Generator
    on_epoch: OnEpoch


@dataclass(frozen=True)
class Sight:
    """What a device has before it: new images, the labels of its own, and those images."""

    number: int
    new: Client
    own_labels: Tensor
    own: Callable[[], Client]
    generator: torch.Generator
    serving: Serving


class Adaptation(Protocol):
    """One way of adapting a backbone to clients."""

    def module(self, backbone: Featured, num_devices: int) -> nn.Module:
        """Return the untrained module that devices are sent."""

    def train(self, module: nn.Module, backbone: Featured, grounds: Grounds) -> None:
        """Train it on the cloud, in place."""

    def logits(self, module: nn.Module, sight: Sight) -> Tensor:
        """Return a device's logits (N, classes) of its new images."""


class Backbone:
    """The backbone as it is."""

    def module(self, backbone: Featured, num_devices: int) -> nn.Module:
        return nn.Identity()

    def train(self, module: nn.Module, backbone: Featured, grounds: Grounds) -> None:
        pass

    def logits(self, module: nn.Module, sight: Sight) -> Tensor:
        return sight.new.logits


class Oracle(Backbone):
    """The backbone told which classes the device holds: all others are ruled out."""

    def logits(self, module: nn.Module, sight: Sight) -> Tensor:
        classes, device = sight.new.logits.shape[1], sight.new.logits.device
        held = torch.zeros(classes, dtype=torch.bool, device=device)
        held[sight.own_labels.to(device)] = True
        return sight.new.logits.masked_fill(~held, -torch.inf)


@dataclass(frozen=True)
class Attention:
    """ICIIA, or with ``sees_others=False`` feed-forward layers of the same size."""

    conf: AdaptationConf
    sees_others: bool = True

    def module(self, backbone: Featured, num_devices: int) -> nn.Module:
        conf, head = self.conf, backbone.linear_head()
        try:
            return ImageAttention(
                features=head.in_features,
                num_classes=head.out_features,
                layers=conf.layers,
                heads=conf.heads,
                partitions=conf.partitions,
                dropout=conf.dropout,
                shuffle=conf.shuffle,
                attention=self.sees_others,
            )
        except ConfError as error:
            raise ConfError(f"adaptation.{error}") from error

    def train(self, module: nn.Module, backbone: Featured, grounds: Grounds) -> None:
        train_over_clients(
            module,
            *grounds.clients(),
            self.conf.recipe(),
            grounds.generator,
            grounds.on_epoch,
        )

    def logits(self, module: nn.Module, sight: Sight) -> Tensor:
        return adapted_logits(module, sight.new, sight.serving)


@dataclass(frozen=True)
class FineTuning:
    """The last layer, trained by each device on labels of its own, which ICIIA does without."""

    recipe: Recipe

    def module(self, backbone: Featured, num_devices: int) -> nn.Module:
        return backbone.linear_head()

    def train(self, module: nn.Module, backbone: Featured, grounds: Grounds) -> None:
        module.load_state_dict(backbone.linear_head().state_dict())

    def logits(self, module: nn.Module, sight: Sight) -> Tensor:
        tuned = copy.deepcopy(module).requires_grad_(True)
        kept, held_out = _parted(sight.own(), sight.generator)
        train_over_clients(tuned, [kept], [held_out], self.recipe, sight.generator)
        with torch.inference_mode():
            return tuned(sight.new.features)


class PromptHead(nn.Module):
    """logits = head(features) + prompt(embedding of the device); the input's last column is which.

    The embedding is half as wide as the features.
    """

    def __init__(self, head: nn.Linear, num_devices: int) -> None:
        super().__init__()
        width = max(1, head.in_features // 2)
        self.head = head
        self.embedding = nn.Embedding(num_devices, width)
        self.prompt = nn.Linear(width, head.out_features)

    def forward(self, features: Tensor) -> Tensor:
        of_device = self.prompt(self.embedding(features[:, -1].long()))
        return self.head(features[:, :-1]) + of_device


@dataclass(frozen=True)
class Prompt:
    """An embedding a device beside the head, trained on all devices' labels in one place."""

    recipe: Recipe

    def module(self, backbone: Featured, num_devices: int) -> nn.Module:
        return PromptHead(backbone.linear_head(), num_devices)

    def train(self, module: nn.Module, backbone: Featured, grounds: Grounds) -> None:
        assert isinstance(module, PromptHead)
        module.head.load_state_dict(backbone.linear_head().state_dict())
        parts = [
            [_numbered(part, number) for part in _parted(own, grounds.generator)]
            for number, own in enumerate(grounds.labelled())
        ]
        kept, held_out = zip(*parts, strict=True)
        train_over_clients(module, kept, held_out, self.recipe, grounds.generator, grounds.on_epoch)

    def logits(self, module: nn.Module, sight: Sight) -> Tensor:
        with torch.inference_mode():
            return module(_numbered(sight.new, sight.number).features)


def adaptation_of(conf: AdaptationConf) -> Adaptation:
    """Return the adaptation that a configuration names."""
    made: dict[str, Callable[[], Adaptation]] = {
        "none": Backbone,
        "oracle": Oracle,
        "attention": lambda: Attention(conf),
        "feed_forward": lambda: Attention(conf, sees_others=False),
        "fine_tuning": lambda: FineTuning(conf.recipe()),
        "prompt": lambda: Prompt(conf.recipe()),
    }
    return made[conf.by]()


def _parted(own: Client, generator: torch.Generator) -> tuple[Client, Client]:
    """Return a device's images to learn from and, where it has more than one, some held out."""
    order = torch.randperm(len(own.labels), generator=generator)
    held_out = max(1, len(order) // HELD_OUT) if len(order) > 1 else 0
    return own.taken(order[held_out:]), own.taken(order[:held_out])


def _numbered(client: Client, number: int) -> Client:
    column = torch.full((len(client.features), 1), float(number), device=client.features.device)
    return Client(torch.cat([client.features, column], 1), client.logits, client.labels)
