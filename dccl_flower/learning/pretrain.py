"""Train the cloud submodel on the cloud's own samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice

import torch
from torch import nn
from torch.nn import functional

from dccl_flower.config import PretrainConf
from dccl_flower.data.loader import Loader, endless
from dccl_flower.learning.evaluate import accuracy, predict

OnEpoch = Callable[[int, int], None]


def pretrain(
    model: nn.Module,
    loader: Loader,
    conf: PretrainConf,
    generator: torch.Generator,
    validation: Loader | None = None,
    device: torch.device | str = "cpu",
    on_epoch: OnEpoch = lambda done, total: None,
) -> None:
    """Minimise cross-entropy in place; with validation data the best epoch's weights are kept."""
    steps = len(loader)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=conf.lr,
        momentum=conf.momentum,
        weight_decay=conf.weight_decay,
        nesterov=conf.momentum > 0,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=conf.lr, total_steps=conf.epochs * steps + 1, cycle_momentum=False
    )
    batches = endless(loader, generator)
    best, best_state = -1.0, None
    for epoch in range(conf.epochs):
        model.train()
        for images, labels in islice(batches, steps):
            loss = functional.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if validation is not None:
            score = accuracy(*predict(model, validation, device))
            if score >= best:
                best, best_state = score, copy.deepcopy(model.state_dict())
        on_epoch(epoch + 1, conf.epochs)
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()
