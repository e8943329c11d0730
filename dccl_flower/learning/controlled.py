"""Controlled training: the co-submodel learns under logits that stand in for the cloud submodel.

Ding et al., "DC-CCL", arXiv 2303.10361: the loss is CE(control(x) + co(x), y) with the control
frozen, so the gradient of the co-submodel is that of the full sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from dccl_flower.config import RoundsConf
from dccl_flower.learning.losses import Loss
from dccl_flower.models.frozen import train_mode


@dataclass(frozen=True)
class LocalRecipe:
    """What one side does in one round: SGD with a fresh momentum buffer each time."""

    steps: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    freeze_statistics: bool = False
    max_grad_norm: float = 0.0


def train_controlled(
    co: nn.Module,
    control: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    loss: Loss,
    recipe: LocalRecipe,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Train ``co`` in place and return the mean training loss and accuracy of the steps."""
    trainable = [p for p in co.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trainable, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    control.eval()
    train_mode(co, recipe.freeze_statistics)
    total, correct, seen = 0.0, 0, 0
    for images, labels in islice(batches, recipe.steps):
        images, labels = images.to(device), labels.to(device)
        with torch.no_grad():
            control_logits = control(images)
        logits = control_logits + co(images)
        step_loss = loss(logits, labels)
        optimizer.zero_grad()
        step_loss.backward()
        if recipe.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(trainable, recipe.max_grad_norm)
        optimizer.step()
        total += step_loss.item() * len(labels)
        correct += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
    co.eval()
    return total / seen, correct / seen


def learning_rate(schedule: str, base: float, server_round: int, num_rounds: int) -> float:
    """Return the rate of a round, counted from 1.

    ``last_two_halved`` is the published schedule; ``cosine`` falls to a twentieth of ``base``. The
    rate of the last round stays for rounds beyond ``num_rounds``.
    """
    if schedule == "last_two_halved":
        return base * (0.5 if server_round > num_rounds - 2 else 1.0)
    if schedule == "cosine":
        progress = min(1.0, (server_round - 1) / max(1, num_rounds - 1))
        factor = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
        return base * (0.05 + 0.95 * factor)
    return base


def round_recipe(rounds: RoundsConf, server_round: int, freeze_statistics: bool) -> LocalRecipe:
    """Return what each side does in a round; statistics freeze after their share of the rounds."""
    is_late = server_round > rounds.freeze_statistics_after * rounds.count
    return LocalRecipe(
        steps=rounds.local_steps,
        lr=learning_rate(rounds.lr_schedule, rounds.lr, server_round, rounds.count),
        momentum=rounds.momentum,
        weight_decay=rounds.weight_decay,
        freeze_statistics=freeze_statistics and is_late,
        max_grad_norm=rounds.max_grad_norm,
    )
