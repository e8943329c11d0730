"""Controlled training: the co-submodel learns under logits that stand in for the cloud submodel.

Ding et al., "DC-CCL", arXiv 2303.10361: the loss is CE(control(x) + co(x), y) with the control
frozen, so the gradient of the co-submodel is that of the full sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.types import Device

from dccl_flower.data.batches import Pair, pair_of
from dccl_flower.image_config import RoundsConf, TwoSidedRoundsConf
from dccl_flower.learning.batch_statistics import (
    OtherSide,
    measured_statistics,
    mixed_statistics,
    training_logits,
)
from dccl_flower.learning.control_logits import KnownBatch
from dccl_flower.learning.losses import Loss
from dccl_flower.models.frozen import train_mode

STATISTICS = ("batch", "frozen", "fused", "mixed")
MEASURED = ("fused", "mixed")
BUFFER = "momentum_buffer"  # as torch calls it
NOBODY = OtherSide({}, 1.0)


@dataclass(frozen=True)
class LocalRecipe:
    """What one side does in one round.

    ``statistics``: batch norms normalise with those of the ``batch``; with what they hold, which
    stays (``frozen``); with what they hold while those of this round's inputs are measured and
    take their place at its end (``fused``); or, measured too, with the mixture of the batch's and
    those of the other side (``mixed``).
    """

    steps: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    statistics: str = "batch"
    max_grad_norm: float = 0.0


def train_controlled(
    co: nn.Module,
    control: nn.Module,
    batches: Iterator[Pair | KnownBatch],
    loss: Loss,
    recipe: LocalRecipe,
    device: Device = "cpu",
    *,
    correction: dict[str, Tensor] | None = None,
    momentum: dict[str, Tensor] | None = None,
    other: OtherSide = NOBODY,
) -> tuple[float, float]:
    """Train ``co`` in place by SGD and return the mean training loss and accuracy of the steps.

    ``batches`` yields (images, labels), or a KnownBatch where the control's logits are known; one
    image that batch norms cannot train on is no step, and is scored in eval mode. ``correction`` is
    added to the gradients, by name. ``momentum`` holds buffers by name: carried on, and left in it.
    ``other``: the other side's batch statistics. Raises ValueError for a batch of another form.
    """
    trainable = {name: p for name, p in co.named_parameters() if p.requires_grad}
    optimizer = _optimizer(trainable, recipe, momentum or {}, device)
    control.eval()
    train_mode(co, freeze_statistics=recipe.statistics != "batch")
    total, correct, seen = 0.0, 0, 0
    with (
        measured_statistics(co) if recipe.statistics in MEASURED else nullcontext(),
        mixed_statistics(co, other) if recipe.statistics == "mixed" else nullcontext(),
    ):
        for batch in islice(batches, recipe.steps):
            logits, labels = _controlled_logits(co, control, batch, device)
            step_loss = loss(logits, labels)
            if logits.requires_grad:
                _step(step_loss, optimizer, trainable, correction or {}, recipe.max_grad_norm)
            total += step_loss.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
    if momentum is not None and recipe.momentum > 0:
        momentum |= _buffers(trainable, optimizer)
    co.eval()
    return total / seen, correct / seen


def _controlled_logits(
    co: nn.Module, control: nn.Module, batch: Pair | KnownBatch, device: Device
) -> tuple[Tensor, Tensor]:
    """Return a batch's logits of both together, with the gradient of one, and its labels."""
    parts = batch if isinstance(batch, KnownBatch) else pair_of(batch)
    images, labels, *known = (part.to(device) for part in parts)
    logits = training_logits(co, images)
    with torch.no_grad():
        control_logits = known[0] if known else control(images)
    return logits + control_logits, labels


def _buffers(
    trainable: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    held = {name: optimizer.state[parameter] for name, parameter in trainable.items()}
    return {name: state[BUFFER].cpu().clone() for name, state in held.items() if BUFFER in state}


def _optimizer(
    trainable: dict[str, nn.Parameter],
    recipe: LocalRecipe,
    momentum: dict[str, Tensor],
    device: Device,
) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(
        trainable.values(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    for name, buffer in momentum.items():
        optimizer.state[trainable[name]][BUFFER] = buffer.to(device)
    return optimizer


def _step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    trainable: dict[str, nn.Parameter],
    correction: dict[str, Tensor],
    max_grad_norm: float,
) -> None:
    """Step along the gradients, corrected and then clipped."""
    optimizer.zero_grad()
    loss.backward()
    for name, tensor in correction.items():
        if name in trainable and (gradient := trainable[name].grad) is not None:
            gradient.add_(tensor.to(gradient.device))
    if max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(trainable.values(), max_grad_norm)
    optimizer.step()


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


def round_recipe(rounds: RoundsConf, server_round: int, statistics: str = "batch") -> LocalRecipe:
    """Return what each side does in a round whose batch norms work with these ``statistics``."""
    return LocalRecipe(
        steps=rounds.local_steps,
        lr=learning_rate(rounds.lr_schedule, rounds.lr, server_round, rounds.count),
        momentum=rounds.momentum,
        weight_decay=rounds.weight_decay,
        statistics=statistics,
        max_grad_norm=rounds.max_grad_norm,
    )


def late_statistics(rounds: TwoSidedRoundsConf, server_round: int, statistics: str) -> str:
    """Return ``statistics`` once those of the batch have served for their share of the rounds."""
    is_late = server_round > rounds.freeze_statistics_after * rounds.count
    return statistics if is_late else "batch"
