"""A device of small images: loaders, models, and a control that counts how often it is asked."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from dccl_flower.data.loader import ImageLoader
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.seeds import isolated_rng

MEAN, STD = np.array([0.5], np.float32), np.array([0.25], np.float32)
POOL = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 1), dtype=np.uint8)


def image_loader(rows, batch_size=4, augment="none", images=POOL):
    """Return a loader of some images of a pool; their labels follow from their numbers."""
    rows = np.asarray(rows)
    return ImageLoader(images, rows, torch.from_numpy(rows % 3), batch_size, MEAN, STD, augment)


def image_model(seed):
    """Return a tiny net of 4x4 images and three classes."""
    with isolated_rng(seed, "image model"):
        layers = (nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        model = nn.Sequential(nn.Flatten(), *layers)
        model(torch.randn(32, 1, 4, 4))  # so that batch and running statistics differ
    return model


def image_state(seed):
    return exchanged_state(image_model(seed))


class Counted(nn.Module):
    """A model under another roof that keeps the batch sizes that it was given."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        return self.model(images)
