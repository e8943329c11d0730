"""Train and serve a module that sees images of one client together, as features known before.

Inter-client-image attention, Yan et al., arXiv 2211.06276: every batch is of one client.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.types import Device

from dccl_flower.data.batches import Pair
from dccl_flower.learning.pretrain import OnEpoch, tell_nobody

WINDOWS = 256  # of one-by-one serving that are computed at once


@dataclass(frozen=True)
class Client:
    """Features (N, D) of one client's images, the backbone's logits of them, and their labels."""

    features: Tensor
    logits: Tensor
    labels: Tensor

    def taken(self, rows: Tensor) -> Client:
        """Return a client with some of the images."""
        return Client(self.features[rows], self.logits[rows], self.labels[rows])

    def split(self, sizes: int | list[int]) -> list[Client]:
        """Return the images in parts that follow one another, as ``torch.split`` does."""
        parts = (tensor.split(sizes) for tensor in (self.features, self.logits, self.labels))
        return [Client(*part) for part in zip(*parts, strict=True)]


@dataclass(frozen=True)
class Recipe:
    """How a module is trained: SGD on batches of one client, for so many epochs at most.

    It ends after ``patience`` epochs without a better accuracy on clients held out.
    """

    batch_size: int
    epochs: int
    patience: int
    lr: float
    momentum: float
    max_grad_norm: float


@dataclass(frozen=True)
class Serving:
    """How a device uses the module: in batches, each filled up with the images before it; or,
    with ``cached`` of 0 or more, one by one, each beside so many of the last images.

    With fewer than ``fewest`` images to see the backbone answers.
    """

    batch_size: int
    cached: int
    fewest: int


@torch.no_grad()
def seen_by(backbone: nn.Module, batches: Iterable[Pair], device: Device = "cpu") -> Client:
    """Return what a backbone that gives features and logits makes of a client's images."""
    parts = [(*backbone(images.to(device)), labels) for images, labels in batches]
    features, logits, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return Client(features, logits, labels.to(device))


def train_over_clients(
    module: nn.Module,
    clients: Sequence[Client],
    held_out: Sequence[Client],
    recipe: Recipe,
    generator: torch.Generator,
    on_epoch: OnEpoch = tell_nobody,
) -> None:
    """Minimise cross-entropy in place; the epoch that is best on the clients held out is kept.

    The order of clients is drawn anew each epoch; a client's batches follow one another and stay
    the same. The weights at the start count as an epoch, too. Global generators are drawn from for
    dropout.
    """
    optimizer = torch.optim.SGD(module.parameters(), recipe.lr, recipe.momentum)
    best, best_state, waited = -1.0, copy.deepcopy(module.state_dict()), 0
    for epoch in range(recipe.epochs + 1):
        score = batch_accuracy(module, held_out, recipe.batch_size)
        if score > best:
            best, best_state, waited = score, copy.deepcopy(module.state_dict()), 0
        else:
            waited += 1
        if epoch > 0:
            on_epoch(recipe.epochs if waited == recipe.patience else epoch, recipe.epochs)
        if epoch == recipe.epochs or waited == recipe.patience:
            break
        module.train()
        for place in torch.randperm(len(clients), generator=generator).tolist():
            for batch in clients[place].split(recipe.batch_size):
                take_step(module, batch, optimizer, recipe.max_grad_norm)
    module.load_state_dict(best_state)
    module.eval()


def take_step(
    module: nn.Module, batch: Client, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> float:
    """Take one step on a batch of one client's images, and return the loss before it.

    The gradient is clipped to ``max_grad_norm``, at 0 it is not.
    """
    loss = functional.cross_entropy(module(batch.features), batch.labels)
    optimizer.zero_grad()
    loss.backward()
    if max_grad_norm > 0:
        nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def batch_accuracy(module: nn.Module, clients: Sequence[Client], batch_size: int) -> float:
    """Return the accuracy (a fraction) over clients' images in batches of one client each."""
    module.eval()
    batches = [batch for client in clients for batch in client.split(batch_size)]
    correct = sum(int((module(b.features).argmax(1) == b.labels).sum()) for b in batches)
    return correct / max(1, sum(len(batch.labels) for batch in batches))


@torch.inference_mode()
def adapted_logits(module: nn.Module, client: Client, serving: Serving) -> Tensor:
    """Return the logits (N, classes) that a device serves for its images, in their order."""
    module.eval()
    serve = _in_batches if serving.cached < 0 else _one_by_one
    return serve(module, client.features, client.logits.clone(), serving)


def _in_batches(module: nn.Module, features: Tensor, served: Tensor, serving: Serving) -> Tensor:
    count, size = len(features), serving.batch_size
    whole = count // size * size
    if whole and size >= serving.fewest:
        served[:whole] = module(features[:whole].unflatten(0, (-1, size))).flatten(0, 1)
    seen = features[-size:]
    if count > whole and len(seen) >= serving.fewest:
        served[whole:] = module(seen)[whole - count :]
    return served


def _one_by_one(module: nn.Module, features: Tensor, served: Tensor, serving: Serving) -> Tensor:
    size = serving.cached + 1
    for place in range(min(size - 1, len(features))):
        if place + 1 >= serving.fewest:
            served[place] = module(features[: place + 1])[-1]
    if len(features) >= size >= serving.fewest:
        windows = features.unfold(0, size, 1).transpose(1, 2)  # (N - size + 1, size, D)
        served[size - 1 :] = torch.cat([module(part)[:, -1] for part in windows.split(WINDOWS)])
    return served
