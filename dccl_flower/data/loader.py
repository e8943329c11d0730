"""Batches straight from a memory-map: no worker processes, no per-sample Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CROP_PADDING = 4


class Loader(Protocol):
    """Anything that yields (images, targets) batches, such as torch's DataLoader."""

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class ImageLoader:
    """Batches (B, C, H, W) float32 and targets of the samples ``rows`` of a memory-map.

    ``targets`` belongs to ``rows`` one to one: labels, or a teacher's logits. Iterating gives
    every sample once, in order and without augmentation; ``epoch`` shuffles and augments.
    """

    images: np.ndarray
    rows: np.ndarray
    targets: Tensor
    batch_size: int
    mean: np.ndarray
    std: np.ndarray
    augment: str = "none"

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.rows)

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    @property
    def is_fixed(self):
        return self.augment == "none"

    def with_targets(self, targets: Tensor) -> ImageLoader:
        """Return the same samples with other targets, in the order of ``rows``."""
        return replace(self, targets=targets)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in self._chunks(torch.arange(self.num_samples)):
            yield self._pixels(chosen), self.targets[chosen]

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every sample once in random order; a last batch of one sample is left out."""
        order = torch.randperm(self.num_samples, generator=generator)
        for chosen in self._chunks(order):
            if len(chosen) == 1 and self.num_samples > 1:
                continue
            pixels = augmented(self._pixels(chosen), self.augment, generator)
            yield pixels, self.targets[chosen]

    def _chunks(self, order: Tensor) -> tuple[Tensor, ...]:
        return order.split(self.batch_size) if len(order) else ()

    def _pixels(self, chosen: Tensor) -> Tensor:
        return normalise(self.images[self.rows[chosen.numpy()]], self.mean, self.std)


def normalise(pixels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """Map uint8 images (N, H, W, C) to float32 (N, C, H, W) of mean 0 and deviation 1."""
    batch = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float()
    shift = torch.from_numpy(mean).view(1, -1, 1, 1)
    scale = torch.from_numpy(std).view(1, -1, 1, 1)
    return batch.div_(255).sub_(shift).div_(scale)


def augmented(images: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """Return normalised images as ``augment`` of ImageLoader changes them."""
    return flip_crop(images, generator) if augment == "flip_crop" else images


def flip_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the images left to right and shift each by up to four pixels, zero-padded."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
    padded = functional.pad(images, [CROP_PADDING] * 4)
    top = torch.randint(2 * CROP_PADDING + 1, (count, 1), generator=generator)
    left = torch.randint(2 * CROP_PADDING + 1, (count, 1), generator=generator)
    rows = (top + torch.arange(height))[:, None, :, None]
    columns = (left + torch.arange(width))[:, None, None, :]
    samples = torch.arange(count)[:, None, None, None]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    return padded[samples, channels, rows, columns]


def in_fixed_order(loader: Loader) -> Loader:
    """Return a loader whose batches come the same each time; a foreign one is read into memory."""
    return loader if isinstance(loader, ImageLoader) else list(loader)


def endless(loader: Loader, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for ever; a loader without ``epoch`` is iterated as it is.

    Raises ValueError where the loader yields nothing.
    """
    while True:
        batches = loader.epoch(generator) if hasattr(loader, "epoch") else loader
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("the loader yields no batch")
