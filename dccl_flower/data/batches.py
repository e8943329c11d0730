from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dccl_flower.data.loader import ImageLoader


class Batches(Protocol):
    targets: Tensor
    num_samples: int
    is_fixed: bool


class Foreign:
    is_fixed = False

    def __init__(self, loader):
        self.loader = loader

    @property
    def targets(self):
        return torch.cat([t for _, t in self.loader])

    @property
    def num_samples(self):
        return (
            len(self.loader.dataset)
            if hasattr(self.loader, "dataset")
            else sum(len(t) for _, t in self.loader)
        )

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return iter(self.loader)

    def epoch(self, generator):
        return iter(self.loader)


def as_batches(loader, image_key=None, label_key=None):
    return loader if isinstance(loader, (ImageLoader, Foreign)) else Foreign(loader)
