"""Train a classifier by cross-entropy: the cloud submodel, or a base model to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice

import torch
from torch import nn
from torch.nn import functional

from dccl_flower.config import PretrainConf
from dccl_flower.data.loader import Loader, endless
from dccl_flower.learning.compute import Compute
from dccl_flower.learning.evaluate import accuracy, predict
from dccl_flower.learning.samples import class_counts
from dccl_flower.models.head import find_head

OnEpoch = Callable[[int, int], None]
CPU = Compute()
STEP_EPOCHS, STEP_FACTOR = 5, 0.4


def pretrain(
    model: nn.Module,
    loader: Loader,
    conf: PretrainConf,
    generator: torch.Generator,
    validation: Loader | None = None,
    compute: Compute = CPU,
    on_epoch: OnEpoch = lambda done, total: None,
) -> None:
    """Minimise cross-entropy in place; with validation data the best epoch's weights are kept.

    With ``conf.mask_unseen`` classes without samples are left out of the softmax, so that nothing
    teaches the model that they do not exist.
    """
    steps = len(loader)  # type: ignore[arg-type]
    compute.module(model)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=conf.lr,
        momentum=conf.momentum,
        weight_decay=conf.weight_decay,
        nesterov=conf.momentum > 0,
    )
    schedule = _schedule(optimizer, conf, steps)
    unseen = _unseen_classes(model, loader).to(compute.device) if conf.mask_unseen else None
    batches = endless(loader, generator)
    best, best_state = -1.0, None
    for epoch in range(conf.epochs):
        model.train()
        for images, labels in islice(batches, steps):
            with compute.autocast():
                logits = model(compute.images(images)).float()
            if unseen is not None:
                logits = logits.masked_fill(unseen, -torch.inf)
            loss = functional.cross_entropy(logits, labels.to(compute.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if validation is not None:
            score = accuracy(*predict(model, validation, compute.device))
            if score >= best:
                best, best_state = score, copy.deepcopy(model.state_dict())
        on_epoch(epoch + 1, conf.epochs)
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()


def _schedule(
    optimizer: torch.optim.Optimizer, conf: PretrainConf, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a schedule that advances with every step, of which an epoch has ``steps``."""
    if conf.schedule == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, STEP_EPOCHS * steps, STEP_FACTOR)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=conf.lr, total_steps=conf.epochs * steps + 1, cycle_momentum=False
    )


def _unseen_classes(model: nn.Module, loader: Loader) -> torch.Tensor:
    return class_counts(loader, find_head(model)[1].out_features) == 0
