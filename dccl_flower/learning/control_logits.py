"""The control's logits of a device's own images, computed once: control and images stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.types import Device

from dccl_flower.data.batches import FixedBatches, endless
from dccl_flower.learning.evaluate import predict

PASS_BATCH = 100


class KnownBatch(NamedTuple):
    """A batch of images and labels (B,) whose control logits (B, classes) are known already."""

    images: Tensor
    labels: Tensor
    logits: Tensor


def control_logits(control: nn.Module, batches: FixedBatches, device: Device = "cpu") -> Tensor:
    """Return the control's logits (N, classes) of all samples, in their order."""
    return predict(control, batches.in_batches_of(PASS_BATCH), device)[0].clone()


def with_logits(
    batches: FixedBatches, logits: Tensor, generator: torch.Generator
) -> Iterator[KnownBatch]:
    """Yield batches with their logits for ever, in the order of ``endless``."""
    labels = batches.targets
    for images, rows in endless(batches.with_targets(torch.arange(len(logits))), generator):
        yield KnownBatch(images, labels[rows], logits[rows])
