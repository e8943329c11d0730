"""Distil the mimic from the cloud submodel by regression on its raw logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.data.batches import Batches, FixedBatches
from dccl_flower.image_config import DistilConf
from dccl_flower.learning.batch_statistics import training_logits
from dccl_flower.learning.compute import CPU, Compute
from dccl_flower.learning.evaluate import predict
from dccl_flower.learning.pretrain import OnEpoch, fit, tell_nobody

LATE_RATE = 0.1


def distil(
    mimic: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    conf: DistilConf,
    generator: torch.Generator,
    validation: Batches | None = None,
    compute: Compute = CPU,
    on_epoch: OnEpoch = tell_nobody,
) -> None:
    """Minimise the mean squared error of logits in place, at a tenth of the rate from half-way on.

    The teacher runs once a sample where nothing changes the images, and once a batch otherwise.
    With ``conf.mixup`` every batch is blended with itself in another order (mixup, Zhang et al.,
    arXiv 1710.09412), which shows the mimic images off the cloud's classes.
    With validation data the weights of the epoch with the smallest error there are kept.
    """
    for model in (mimic, teacher):
        compute.module(model)
    is_known = not conf.mixup and batches.is_fixed
    if is_known:
        known, _ = predict(teacher, batches, compute.device)
        batches = cast(FixedBatches, batches).with_targets(known)
    optimizer = torch.optim.Adam((p for p in mimic.parameters() if p.requires_grad), lr=conf.lr)
    half = -(-conf.epochs // 2) * len(batches)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [half], gamma=LATE_RATE)
    score = None if validation is None else _judge(mimic, teacher, validation, compute)
    teacher.eval()

    def loss_of(images: Tensor, targets: Tensor) -> Tensor:
        images = compute.images(_mixed(images, generator) if conf.mixup else images)
        with compute.autocast():
            with torch.no_grad():
                wanted = targets.to(compute.device) if is_known else teacher(images)
            logits = training_logits(mimic, images)
        return functional.mse_loss(logits.float(), wanted.float())

    fit(mimic, batches, conf.epochs, generator, schedule, loss_of, score, on_epoch)


def _judge(
    mimic: nn.Module, teacher: nn.Module, validation: Batches, compute: Compute
) -> Callable[[], float]:
    """Return what scores the mimic on validation data, the less its error the more."""
    validation = validation.in_fixed_order()
    wanted, _ = predict(teacher, validation, compute.device)
    return lambda: (
        -functional.mse_loss(predict(mimic, validation, compute.device)[0], wanted).item()
    )


def _mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blend each image with another of the batch; the share is uniform in 0..1."""
    share = torch.rand(len(images), *[1] * (images.dim() - 1), generator=generator)
    other = images[torch.randperm(len(images), generator=generator)]
    return share * images + (1 - share) * other
