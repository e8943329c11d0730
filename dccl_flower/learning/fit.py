"""The epochs of a model on its own: what pretraining and distillation share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor, nn

from dccl_flower.data.batches import Batches, endless

OnEpoch = Callable[[int, int], None]


def fit(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    generator: torch.Generator,
    schedule: torch.optim.lr_scheduler.LRScheduler,
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
        for images, targets in islice(stream, steps):
            loss = loss_of(images, targets)
            if not loss.requires_grad:
                continue
            schedule.optimizer.zero_grad()
            loss.backward()
            schedule.optimizer.step()
            schedule.step()
        if score is not None and (found := score()) >= best:
            best, best_state = found, copy.deepcopy(model.state_dict())
        on_epoch(epoch + 1, epochs)
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()
