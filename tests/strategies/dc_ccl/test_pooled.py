"""Averaged after every step, the sides' copies take the very steps of training on pooled samples.

What fusion loses is thus lost between two averages, or in batch statistics: those of a side's batch
are not those of the mixed one.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.fusion import Copy, average

STEPS = 12
CLOUD, DEVICES = 6, (3, 3)  # batch sizes, in proportion to the weights of the average
RECIPE = LocalRecipe(steps=1, lr=0.1, momentum=0.9, weight_decay=1e-3)


def net(seed, norm):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


def batches_of(size, seed):
    """Return a batch for each step, of a side whose classes and inputs are its own."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(STEPS, size, 4, generator=draw, dtype=torch.float64) + seed
    return [*zip(images, torch.randint(3, (STEPS, size), generator=draw), strict=True)]


def ends(norm, cloud_weight=0.5):
    """Return the parameters that the sides average after every step, and those of pooled steps."""
    control, first = net(1, norm=False), net(2, norm)
    held = [batches_of(size, seed) for seed, size in enumerate((CLOUD, *DEVICES))]
    fused, pooled = first, copy.deepcopy(first)
    momenta, of_pooled = [{} for _ in held], {}
    for step in range(STEPS):
        copies = []
        for batches, momentum in zip(held, momenta, strict=True):
            own = copy.deepcopy(fused)
            how = (functional.cross_entropy, RECIPE)
            train_controlled(own, control, iter([batches[step]]), *how, momentum=momentum)
            copies.append(Copy(own.state_dict(), len(batches[step][1])))
        fused.load_state_dict(average(copies[0], copies[1:], cloud_weight))
        mixed = tuple(map(torch.cat, zip(*(batches[step] for batches in held), strict=True)))
        how = (functional.cross_entropy, RECIPE)
        train_controlled(pooled, control, iter([mixed]), *how, momentum=of_pooled)
    return [
        torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (fused, pooled)
    ]


def test_averaging_at_every_step_is_pooled_training():
    fused, pooled = ends(norm=False)
    assert torch.allclose(fused, pooled, rtol=0, atol=1e-12)
    assert not torch.allclose(fused, torch.cat([p.flatten() for p in net(2, False).parameters()]))


@pytest.mark.parametrize(("norm", "cloud_weight"), [(True, 0.5), (False, 0.8)])
def test_it_is_not_with_batch_statistics_of_a_side_or_other_weights(norm, cloud_weight):
    fused, pooled = ends(norm, cloud_weight)
    assert (fused - pooled).abs().max() > 1e-3
