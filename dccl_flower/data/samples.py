"""Samples of user-item logs as named tensors with one row a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# "user" and "item" (B,), "history" (B, L), "profile" (B, P), all int64; "label" (B,) float32.
Samples = dict[str, Tensor]


def taken(samples: Samples, chosen: Tensor) -> Samples:
    """Return the samples at positions (K,), or those where a mask (B,) is true."""
    return {name: values[chosen] for name, values in samples.items()}


def joined(parts: Sequence[Samples]) -> Samples:
    """Return samples of one form, one part after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def count(samples: Samples) -> int:
    """Return the number of samples."""
    return len(samples["item"])
