"""Fusion rules: pure functions from the cloud's copy and the devices' copies to the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dccl_flower.learning.batch_statistics import pooled_statistics

State = dict[str, Tensor]


@dataclass(frozen=True)
class Copy:
    """A side's co-submodel after its steps, its samples, and their classes where it tells."""

    state: State
    count: float
    class_counts: Tensor | None = None


FusionRule = Callable[[Copy | None, Sequence[Copy], float], State]


def average(cloud: Copy | None, devices: Sequence[Copy], cloud_weight: float) -> State:
    """Average as published: the cloud's copy with ``cloud_weight``, the devices by sample count.

    Every floating tensor takes part, running means and variances of batch norms included. The
    sum runs in float64 and in the order given. Without a cloud copy the devices share the whole.
    Raises ValueError where no device takes part or all counts are zero.
    """
    copies, weights = _weighed(cloud, devices, cloud_weight)
    return {
        name: _weighted_sum([copy.state[name] for copy in copies], weights)
        for name in copies[0].state
    }


@dataclass(frozen=True)
class Fusion:
    """A rule: the published average, with rows of the head by classes, with pooled statistics.

    A class-wise head weighs each row of the layer ``head``, which gives the logits, by how many
    samples of its class a copy has seen; a class that nobody holds is averaged as the rest. Batch
    statistics that are pooled become those of one mixture of all samples. Raises ValueError where
    a class-wise head meets a copy without class counts.
    """

    class_wise_head: bool = False
    pooled_statistics: bool = False
    head: str = "head"

    @property
    def needs_class_counts(self) -> bool:
        """Tell whether every copy must come with its class counts."""
        return self.class_wise_head

    def __call__(self, cloud: Copy | None, devices: Sequence[Copy], cloud_weight: float) -> State:
        """Return the copies as one state."""
        fused = average(cloud, devices, cloud_weight)
        copies, weights = _weighed(cloud, devices, cloud_weight)
        if self.class_wise_head:
            rows = _row_weights(copies, weights)
            for name in {f"{self.head}.weight", f"{self.head}.bias"} & fused.keys():
                stacked = torch.stack([copy.state[name].double() for copy in copies])
                shares = rows.view(rows.shape + (1,) * (stacked.dim() - 2))
                fused[name] = (shares * stacked).sum(0).to(fused[name].dtype)
        if self.pooled_statistics:
            fused |= pooled_statistics([copy.state for copy in copies], weights)
        return fused


def merge(copies: Sequence[Copy], fusion: FusionRule) -> Copy:
    """Return devices' copies as one in float64, which fuses as they would one by one.

    A rule may see it in their place, since every rule here is a weighted mean: of the copies, of a
    class's rows, or of the moments of a mixture. Raises ValueError where all counts are zero.
    """
    exact = [
        replace(copy, state={n: tensor.double() for n, tensor in copy.state.items()})
        for copy in copies
    ]
    known = [(copy.count, copy.class_counts) for copy in copies if copy.class_counts is not None]
    shares = [count * own.double() / _total(own) for count, own in known]
    classes = torch.stack(shares).sum(0) if len(known) == len(copies) else None
    return Copy(fusion(None, exact, 0.0), sum(copy.count for copy in copies), classes)


def _weighed(
    cloud: Copy | None, devices: Sequence[Copy], cloud_weight: float
) -> tuple[list[Copy], list[float]]:
    """Return the copies, the cloud's first, and their weights, which sum to one."""
    total = sum(copy.count for copy in devices)
    if total <= 0:
        raise ValueError("fusion needs at least one device with samples")
    if cloud is None:
        return list(devices), [copy.count / total for copy in devices]
    shares = [(1 - cloud_weight) * copy.count / total for copy in devices]
    return [cloud, *devices], [cloud_weight, *shares]


def _weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    sums = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        sums.add_(tensor.double(), alpha=weight)
    return sums.to(tensors[0].dtype)


def _row_weights(copies: Sequence[Copy], weights: Sequence[float]) -> Tensor:
    """Return (copies, classes) shares that sum to one over the copies."""
    counts = [copy.class_counts for copy in copies]
    if any(count is None for count in counts):
        raise ValueError("class_wise_head needs class counts of every copy")
    shares = [own.double() / _total(own) for own in counts if own is not None]
    plain = torch.tensor(weights, dtype=torch.float64).unsqueeze(1)
    rows = plain * torch.stack(shares)
    total = rows.sum(0)
    return torch.where(total > 0, rows / total.clamp(min=1e-300), plain)


def _total(class_counts: Tensor) -> Tensor:
    """Return their sum, or one where there are none; a merged copy's may sum to less than one."""
    total = class_counts.sum()
    return torch.where(total > 0, total, torch.ones_like(total))
