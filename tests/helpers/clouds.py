"""Unprepared clouds of tiny models, with and without a shared stem."""

from __future__ import annotations

import torch
from tiny import tiny_loader, tiny_model
from torch import nn

from dccl_flower.image_config import DistilConf, PretrainConf
from dccl_flower.models.frozen import Frozen
from dccl_flower.seeds import isolated_rng
from dccl_flower.strategies.dc_ccl.cloud import Cloud


def cloud_of(seed=0, **options):
    """Return an unprepared cloud whose loader shuffles by torch's global generator."""
    options.setdefault("pretrain", PretrainConf(epochs=2, lr=0.05))
    options.setdefault("distil", DistilConf(epochs=3, lr=0.01))
    loader = options.pop("train_loader", None) or tiny_loader([0, 1], 40, seed=5)
    return Cloud(tiny_model(1), tiny_model(2), tiny_model(3), loader, seed=seed, **options)


def with_stem(seed, frozen):
    """Return a tiny model with a stem in front, frozen or not."""
    with isolated_rng(seed, "stem"):
        stem = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        return nn.Sequential(Frozen(stem) if frozen else stem, nn.ReLU(), nn.Linear(4, 3))


def stem_cloud(**options):
    """Return a cloud whose submodels share a stem."""
    return Cloud(
        with_stem(1, frozen=False),
        with_stem(2, frozen=True),
        with_stem(3, frozen=True),
        tiny_loader([0, 1], 40, seed=5),
        pretrain=PretrainConf(epochs=2, lr=0.05),
        distil=DistilConf(epochs=2, lr=0.01),
        **options,
    )


def same(left, right):
    """Tell whether two states are equal to the bit."""
    return list(left) == list(right) and all(torch.equal(left[n], right[n]) for n in left)
