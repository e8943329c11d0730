"""Train a classifier by cross-entropy: the cloud submodel, or a base model to compare with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.config import PretrainConf
from dccl_flower.data.batches import Batches
from dccl_flower.learning.batch_statistics import training_logits
from dccl_flower.learning.compute import Compute
from dccl_flower.learning.evaluate import accuracy, predict
from dccl_flower.learning.fit import OnEpoch, fit
from dccl_flower.learning.samples import class_counts
from dccl_flower.models.head import find_head

CPU = Compute()
STEP_EPOCHS, STEP_FACTOR = 5, 0.4


def pretrain(
    model: nn.Module,
    batches: Batches,
    conf: PretrainConf,
    generator: torch.Generator,
    validation: Batches | None = None,
    compute: Compute = CPU,
    on_epoch: OnEpoch = lambda done, total: None,
) -> None:
    """Minimise cross-entropy in place; with validation data the best epoch's weights are kept.

    With ``conf.mask_unseen`` classes without samples are left out of the softmax, so that nothing
    teaches the model that they do not exist.
    """
    compute.module(model)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=conf.lr,
        momentum=conf.momentum,
        weight_decay=conf.weight_decay,
        nesterov=conf.momentum > 0,
    )
    schedule = _schedule(optimizer, conf, len(batches))
    unseen = _unseen_classes(model, batches).to(compute.device) if conf.mask_unseen else None

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with compute.autocast():
            logits = training_logits(model, compute.images(images)).float()
        if unseen is not None:
            logits = logits.masked_fill(unseen, -torch.inf)
        return functional.cross_entropy(logits, labels.to(compute.device))

    def score() -> float:
        assert validation is not None
        return accuracy(*predict(model, validation, compute.device))

    chosen = None if validation is None else score
    fit(model, batches, conf.epochs, generator, schedule, loss_of, chosen, on_epoch)


def _schedule(
    optimizer: torch.optim.Optimizer, conf: PretrainConf, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a schedule that advances with every step, of which an epoch has ``steps``."""
    if conf.schedule == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, STEP_EPOCHS * steps, STEP_FACTOR)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=conf.lr, total_steps=conf.epochs * steps + 1, cycle_momentum=False
    )


def _unseen_classes(model: nn.Module, batches: Batches) -> torch.Tensor:
    return class_counts(batches, find_head(model)[1].out_features) == 0
