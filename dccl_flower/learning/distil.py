"""Distil the mimic from the cloud submodel by regression on its raw logits."""

from __future__ import annotations

import copy
from itertools import islice

import torch
from torch import nn
from torch.nn import functional

from dccl_flower.config import DistilConf
from dccl_flower.data.loader import ImageLoader, Loader, endless
from dccl_flower.learning.evaluate import predict
from dccl_flower.learning.pretrain import OnEpoch

LATE_RATE = 0.1


def distil(
    mimic: nn.Module,
    teacher: nn.Module,
    loader: Loader,
    conf: DistilConf,
    generator: torch.Generator,
    validation: Loader | None = None,
    device: torch.device | str = "cpu",
    on_epoch: OnEpoch = lambda done, total: None,
) -> None:
    """Minimise the mean squared error of logits in place, at a tenth of the rate from half-way on.

    The teacher runs once a sample where the loader does not augment, and once a batch otherwise.
    With validation data the weights of the epoch with the smallest error there are kept.
    """
    fixed = isinstance(loader, ImageLoader) and loader.augment == "none"
    if isinstance(loader, ImageLoader) and fixed:
        loader = loader.with_targets(predict(teacher, loader, device)[0])
    wanted = predict(teacher, validation, device)[0] if validation is not None else None
    optimizer = torch.optim.Adam((p for p in mimic.parameters() if p.requires_grad), lr=conf.lr)
    half = -(-conf.epochs // 2)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [half], gamma=LATE_RATE)
    batches = endless(loader, generator)
    teacher.eval()
    best, best_state = float("inf"), None
    for epoch in range(conf.epochs):
        mimic.train()
        for images, targets in islice(batches, len(loader)):  # type: ignore[arg-type]
            images = images.to(device)
            with torch.no_grad():
                logits = targets.to(device) if fixed else teacher(images)
            loss = functional.mse_loss(mimic(images), logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if validation is not None and wanted is not None:
            error = functional.mse_loss(predict(mimic, validation, device)[0], wanted).item()
            if error <= best:
                best, best_state = error, copy.deepcopy(mimic.state_dict())
        on_epoch(epoch + 1, conf.epochs)
    if best_state is not None:
        mimic.load_state_dict(best_state)
    mimic.eval()
