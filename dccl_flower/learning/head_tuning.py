"""Head tuning without raw samples: sides send gradients of the last layer only.

Such a gradient tells which classes are behind it, the less the more samples it is a mean of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from torch.types import Device

from dccl_flower.data.batches import Pair
from dccl_flower.learning.fusion import State
from dccl_flower.learning.losses import Loss
from dccl_flower.models.head import find_head


@dataclass(frozen=True)
class HeadPrivacy:
    """What a device does before its head gradient goes up.

    It gives none of fewer than ``floor`` samples, shortens one that is longer than ``clip`` (0:
    none), and adds Gaussian noise of ``noise`` times ``clip`` to every number.
    """

    floor: int = 16
    clip: float = 0.0
    noise: float = 0.0

    def covered(self, gradient: State, generator: torch.Generator) -> State:
        """Return a gradient as it may go up."""
        if self.clip == 0:
            return gradient
        norm = torch.cat([slope.flatten() for slope in gradient.values()]).norm()
        factor = self.clip / max(norm.item(), self.clip)
        return {
            name: slope * factor
            + self.noise * self.clip * torch.randn(slope.shape, generator=generator)
            for name, slope in gradient.items()
        }


FLOOR_ALONE = HeadPrivacy()


def head_gradient(
    co: nn.Module,
    control: nn.Module,
    batches: Iterator[Pair],
    loss: Loss,
    num_batches: int,
    device: Device = "cpu",
) -> tuple[State, int]:
    """Return the mean gradient of the head's parameters over the batches, and the sample count.

    Averaged over sides with the sample counts as weights this is the gradient of the pooled data.
    """
    co.eval()
    control.eval()
    head_name, head = find_head(co)
    parameters = dict(head.named_parameters(prefix=head_name))
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    seen = 0
    for images, labels in islice(batches, num_batches):
        images, labels = images.to(device), labels.to(device)
        with torch.no_grad():
            control_logits = control(images)
        step_loss = loss(control_logits + co(images), labels)
        gradients = torch.autograd.grad(step_loss, list(parameters.values()))
        for name, gradient in zip(sums, gradients, strict=True):
            sums[name] += gradient * len(labels)
        seen += len(labels)
    return {name: (total / seen).cpu() for name, total in sums.items()}, seen


def apply_head_gradient(state: State, gradient: State, lr: float) -> State:
    """Return the state after one plain gradient step on the head."""
    return state | {name: state[name] - lr * slope for name, slope in gradient.items()}


def head_part(co: nn.Module, state: State) -> State:
    """Return the part of a state that belongs to the head of ``co``."""
    head_name, head = find_head(co)
    return {name: state[name] for name, _ in head.named_parameters(prefix=head_name)}
