"""Samples of a recommender: a user, an item, what the user liked before, and the label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dccl_flower.data.interactions import Interactions

Samples = dict[str, Tensor]


def samples_of(log: Interactions, rows: np.ndarray, length: int) -> Samples:
    """Return user, item (B,), history (B, length), profile (B, P) as int64, label (B,) as float32.

    History: the items that the user liked last, at an earlier time than the row's, oldest first,
    padded in front with -1. What is of the same time is left out: a drawn negative would be known
    by it.
    """
    users = log.users[rows].astype(np.int64)
    return {
        "user": torch.from_numpy(users),
        "item": torch.from_numpy(log.items[rows].astype(np.int64)),
        "history": torch.from_numpy(_histories(log, rows, users, length)),
        "profile": torch.from_numpy(log.profiles[users].astype(np.int64)),
        "label": torch.from_numpy(log.labels[rows].astype(np.float32)),
    }


def taken(samples: Samples, chosen: Tensor) -> Samples:
    """Return the chosen samples, by their places or by a mask."""
    return {name: values[chosen] for name, values in samples.items()}


def joined(parts: Sequence[Samples]) -> Samples:
    """Return samples that follow one another; there must be one part at least."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def count(samples: Samples) -> int:
    """Return the number of samples."""
    return len(samples["label"])


def _histories(log: Interactions, rows: np.ndarray, users: np.ndarray, length: int) -> np.ndarray:
    moments = log.moments[np.searchsorted(log.moments, rows, side="right") - 1]
    end = np.searchsorted(log.liked, moments)
    places = end[:, None] + np.arange(-length, 0)
    is_own = places >= np.searchsorted(log.liked, log.offsets[users])[:, None]
    histories = np.full(places.shape, -1, dtype=np.int64)
    histories[is_own] = log.items[log.liked[places[is_own]]]
    return histories
