"""Batches straight from a memory-map: no worker processes, no per-sample Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dccl_flower.data.batches import Pair

CROP_PADDING = 4


@dataclass(frozen=True)
class ImageLoader:
    """FixedBatches (B, C, H, W) float32 of the samples ``rows`` of a memory-map, in that order.

    ``targets`` belongs to ``rows`` one to one: labels, or a teacher's logits. With ``augment`` the
    images are not fixed.
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
        return len(self.rows)

    @property
    def is_fixed(self) -> bool:
        return self.augment == "none"

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Pair]:
        for chosen in self._chunks(torch.arange(self.num_samples)):
            yield self._pixels(chosen), self.targets[chosen]

    def epoch(self, generator: torch.Generator) -> Iterator[Pair]:
        """Yield every sample once in random order; a last batch of one sample is left out."""
        order = torch.randperm(self.num_samples, generator=generator)
        for chosen in self._chunks(order):
            if len(chosen) == 1 and self.num_samples > 1:
                continue
            yield self.augmented(self._pixels(chosen), generator), self.targets[chosen]

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return flip_crop(images, generator) if self.augment == "flip_crop" else images

    def in_fixed_order(self) -> ImageLoader:
        return self

    def taken(self, chosen: Tensor) -> dict[str, Tensor]:
        """Return ``images`` (K, H, W, C) uint8, ``labels``, and ``mean`` and ``std``."""
        return {
            "images": torch.from_numpy(self.images[self.rows[chosen.numpy()]]),
            "labels": self.targets[chosen],
            "mean": torch.from_numpy(self.mean),
            "std": torch.from_numpy(self.std),
        }

    def with_targets(self, targets: Tensor) -> ImageLoader:
        return replace(self, targets=targets)

    def in_batches_of(self, batch_size: int) -> ImageLoader:
        return replace(self, batch_size=batch_size)

    def content_digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.images[self.rows], self.mean, self.std):
            digest.update(part.tobytes())
        return digest.hexdigest()

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
