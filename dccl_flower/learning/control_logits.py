"""The control's logits of a device's own images, computed once: control and images stay."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor, nn

from dccl_flower.data.loader import ImageLoader, Loader, endless
from dccl_flower.learning.evaluate import predict

PASS_BATCH = 100


def shows_the_same_images(loader: Loader) -> TypeGuard[ImageLoader]:
    """Tell whether a loader's images are the same in every epoch, and known by position."""
    return isinstance(loader, ImageLoader) and loader.augment == "none"


def control_logits(
    control: nn.Module, loader: ImageLoader, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the control's logits (N, classes) of all samples, in the loader's order."""
    return predict(control, replace(loader, batch_size=PASS_BATCH), device)[0].clone()


def with_logits(
    loader: ImageLoader, logits: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches (images, labels, logits) for ever, in the order of ``endless``."""
    for images, rows in endless(loader.with_targets(torch.arange(len(logits))), generator):
        yield images, loader.targets[rows], logits[rows]


def content_digest(loader: ImageLoader) -> str:
    """Return a hash of a loader's images and of what normalises them."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (loader.images[loader.rows], loader.mean, loader.std):
        digest.update(part.tobytes())
    return digest.hexdigest()
