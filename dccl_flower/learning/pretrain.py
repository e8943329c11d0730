"""Train a model on its own by epochs: the cloud submodel, or a base model to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR, StepLR

from dccl_flower.data.batches import Batches, endless
from dccl_flower.image_config import PretrainConf
from dccl_flower.learning.batch_statistics import training_logits
from dccl_flower.learning.compute import CPU, Compute
from dccl_flower.learning.evaluate import accuracy, predict
from dccl_flower.learning.exemplars import class_counts
from dccl_flower.models.head import find_head

STEP_EPOCHS, STEP_FACTOR = 5, 0.4


class OnEpoch(Protocol):
    """Is told the epochs done and in all, and the mean loss of the steps of the last one."""

    def __call__(self, done: int, total: int, loss: float | None = None) -> None:
        """Take notice."""


def tell_nobody(done: int, total: int, loss: float | None = None) -> None:
    """Take no notice of an epoch."""


def pretrain(
    model: nn.Module,
    batches: Batches,
    conf: PretrainConf,
    generator: torch.Generator,
    validation: Batches | None = None,
    compute: Compute = CPU,
    on_epoch: OnEpoch = tell_nobody,
) -> None:
    """Minimise cross-entropy in place; with validation data the best epoch's weights are kept.

    First come ``conf.head_epochs`` of the head alone at a constant rate, all else as it is; of
    these and of the others the best epoch is kept apart. With ``conf.mask_unseen`` classes without
    samples are left out of the softmax, so that nothing teaches the model that they do not exist.
    """
    compute.module(model)
    loss_of = _masked_loss(model, batches, conf, compute)

    def score() -> float:
        assert validation is not None
        return accuracy(*predict(model, validation, compute.device))

    def told_from(start: int) -> OnEpoch:
        total = conf.head_epochs + conf.epochs
        return lambda done, _, loss=None: on_epoch(start + done, total, loss)

    chosen, before = None if validation is None else score, conf.head_epochs
    if before:
        with _head_alone(model) as alone:
            schedule: LRScheduler = ConstantLR(_sgd(alone.head, conf), factor=1)
            fit(alone, batches, before, generator, schedule, loss_of, chosen, told_from(0))
    schedule = _schedule(_sgd(model, conf), conf, len(batches))
    fit(model, batches, conf.epochs, generator, schedule, loss_of, chosen, told_from(before))


def _masked_loss(
    model: nn.Module, batches: Batches, conf: PretrainConf, compute: Compute
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the cross-entropy of images and labels; if so set, over classes with samples alone."""
    unseen = _unseen(model, batches).to(compute.device) if conf.mask_unseen else None

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with compute.autocast():
            logits = training_logits(model, compute.images(images)).float()
        if unseen is not None:
            logits = logits.masked_fill(unseen, -torch.inf)
        return functional.cross_entropy(logits, labels.to(compute.device))

    return loss_of


class _HeadAlone(nn.Module):
    """A model of which the head alone is in training: norms keep their statistics."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, find_head(model)[1]

    def train(self, mode: bool = True) -> _HeadAlone:
        self.model.eval()
        self.head.train(mode)
        return self


@contextmanager
def _head_alone(model: nn.Module) -> Iterator[_HeadAlone]:
    """Let nothing but the head learn, inside the block."""
    alone = _HeadAlone(model)
    of_head = set(alone.head.parameters())
    others = [p for p in model.parameters() if p.requires_grad and p not in of_head]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield alone
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def _sgd(module: nn.Module, conf: PretrainConf) -> torch.optim.SGD:
    return torch.optim.SGD(
        module.parameters(),
        lr=conf.lr,
        momentum=conf.momentum,
        weight_decay=conf.weight_decay,
        nesterov=conf.momentum > 0,
    )


def _unseen(model: nn.Module, batches: Batches) -> Tensor:
    """Tell for each of the model's classes whether no sample is of it."""
    return class_counts(batches, find_head(model)[1].out_features) == 0


def fit(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    generator: torch.Generator,
    schedule: LRScheduler,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    score: Callable[[], float] | None,
    on_epoch: OnEpoch,
) -> None:
    """Take the steps of all epochs in place; with a ``score`` the best epoch's weights are kept.

    ``loss_of`` images and targets; one without gradient is no step. ``schedule`` advances with
    each step. The last of equal scores counts.
    """
    steps, stream = len(batches), endless(batches, generator)
    best, best_state = -torch.inf, None
    for epoch in range(epochs):
        model.train()
        losses = []
        for images, targets in islice(stream, steps):
            loss = loss_of(images, targets)
            if not loss.requires_grad:
                continue
            losses.append(loss.detach())
            schedule.optimizer.zero_grad()
            loss.backward()
            schedule.optimizer.step()
            schedule.step()
        if score is not None and (found := score()) >= best:
            best, best_state = found, copy.deepcopy(model.state_dict())
        on_epoch(epoch + 1, epochs, torch.stack(losses).mean().item() if losses else None)
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()


def _schedule(optimizer: torch.optim.Optimizer, conf: PretrainConf, steps: int) -> LRScheduler:
    """Return a schedule that advances with every step, of which an epoch has ``steps``."""
    if conf.schedule == "step":
        return StepLR(optimizer, STEP_EPOCHS * steps, STEP_FACTOR)
    total = conf.epochs * steps + 1
    return OneCycleLR(optimizer, max_lr=conf.lr, total_steps=total, cycle_momentum=False)
