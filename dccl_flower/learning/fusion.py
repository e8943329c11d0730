"""Fusion rules: pure functions from the cloud's copy and the devices' copies to the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]
Fusion = Callable[[State | None, Sequence[tuple[float, State]], float], State]


def average(
    cloud: State | None, devices: Sequence[tuple[float, State]], cloud_weight: float
) -> State:
    """Average as published: the cloud's copy with ``cloud_weight``, the devices by sample count.

    Every floating tensor takes part, running means and variances of batch norms included. The
    sum runs in float64 and in the order given. Without a cloud copy the devices share the whole.
    Raises ValueError where no device takes part or all counts are zero.
    """
    total = sum(count for count, _ in devices)
    if total <= 0:
        raise ValueError("fusion needs at least one device with samples")
    device_weight = 1.0 if cloud is None else 1.0 - cloud_weight
    parts = [(device_weight * count / total, state) for count, state in devices]
    if cloud is not None:
        parts.insert(0, (cloud_weight, cloud))
    fused: State = {}
    for name, first in parts[0][1].items():
        sums = torch.zeros(first.shape, dtype=torch.float64)
        for weight, state in parts:
            sums.add_(state[name].double(), alpha=weight)
        fused[name] = sums.to(first.dtype)
    return fused


FUSIONS: dict[str, Fusion] = {"average": average}
