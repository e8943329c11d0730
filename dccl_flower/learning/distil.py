"""Distil the mimic from the cloud submodel by regression on its raw logits."""

from __future__ import annotations

import copy
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.config import DistilConf
from dccl_flower.data.loader import ImageLoader, Loader, endless, in_fixed_order
from dccl_flower.learning.compute import Compute
from dccl_flower.learning.evaluate import predict
from dccl_flower.learning.pretrain import CPU, OnEpoch

LATE_RATE = 0.1


def distil(
    mimic: nn.Module,
    teacher: nn.Module,
    loader: Loader,
    conf: DistilConf,
    generator: torch.Generator,
    validation: Loader | None = None,
    compute: Compute = CPU,
    on_epoch: OnEpoch = lambda done, total: None,
) -> None:
    """Minimise the mean squared error of logits in place, at a tenth of the rate from half-way on.

    The teacher runs once a sample where nothing changes the images, and once a batch otherwise.
    With ``conf.mixup`` every batch is blended with itself in another order (mixup, Zhang et al.,
    arXiv 1710.09412), which shows the mimic images off the cloud's classes.
    With validation data the weights of the epoch with the smallest error there are kept.
    """
    fixed = isinstance(loader, ImageLoader) and loader.augment == "none" and not conf.mixup
    for model in (mimic, teacher):
        compute.module(model)
    if isinstance(loader, ImageLoader) and fixed:
        loader = loader.with_targets(predict(teacher, loader, compute.device)[0])
    validation = None if validation is None else in_fixed_order(validation)
    wanted = predict(teacher, validation, compute.device)[0] if validation is not None else None
    optimizer = torch.optim.Adam((p for p in mimic.parameters() if p.requires_grad), lr=conf.lr)
    half = -(-conf.epochs // 2)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [half], gamma=LATE_RATE)
    batches = endless(loader, generator)
    teacher.eval()
    best, best_state = float("inf"), None
    for epoch in range(conf.epochs):
        mimic.train()
        for images, targets in islice(batches, len(loader)):  # type: ignore[arg-type]
            images = compute.images(_mixed(images, generator) if conf.mixup else images)
            with compute.autocast():
                with torch.no_grad():
                    wanted_logits = targets.to(compute.device) if fixed else teacher(images)
                logits = mimic(images)
            loss = functional.mse_loss(logits.float(), wanted_logits.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if validation is not None and wanted is not None:
            error = functional.mse_loss(
                predict(mimic, validation, compute.device)[0], wanted
            ).item()
            if error <= best:
                best, best_state = error, copy.deepcopy(mimic.state_dict())
        on_epoch(epoch + 1, conf.epochs)
    if best_state is not None:
        mimic.load_state_dict(best_state)
    mimic.eval()


def _mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blend each image with another of the batch; the share is uniform in 0..1."""
    share = torch.rand(len(images), *[1] * (images.dim() - 1), generator=generator)
    other = images[torch.randperm(len(images), generator=generator)]
    return share * images + (1 - share) * other
