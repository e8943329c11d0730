"""Items that a user never met, drawn beside each that the user did."""

from __future__ import annotations

import numpy as np

TRIES = 20  # draws before a row's item is drawn among those that are left to it, which is slow


def draw_negatives(
    users: np.ndarray, items: np.ndarray, count: int, weights: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    """Return ``count`` different items (N, count) for each row, none of which its user met.

    ``weights`` (num_items,): how often an item is drawn. Raises ValueError, which names the number
    of items left, where a user met too many of them.
    """
    met = np.unique(users.astype(np.int64) * len(weights) + items)
    left = len(weights) - int(np.bincount(met // len(weights)).max(initial=0))
    if left < count:
        raise ValueError(f"there is a user who never met only {left} of {len(weights)} items")
    bounds = np.cumsum(weights, dtype=np.float64)
    drawn = np.full((len(users), count), -1, dtype=np.int64)
    for slot in range(count):
        rows = np.arange(len(users))
        for _ in range(TRIES):
            found = np.searchsorted(bounds, draw.random(len(rows)) * bounds[-1], side="right")
            found = np.minimum(found, len(weights) - 1)
            is_taken = _among(met, users[rows].astype(np.int64) * len(weights) + found)
            is_taken |= (drawn[rows, :slot] == found[:, None]).any(1)
            drawn[rows, slot] = np.where(is_taken, -1, found)
            rows = rows[is_taken]
        for row in rows:
            start = int(users[row]) * len(weights)
            first, last = np.searchsorted(met, [start, start + len(weights)])
            taken = np.concatenate([met[first:last] - start, drawn[row, :slot]])
            free = np.setdiff1d(np.arange(len(weights)), taken)
            drawn[row, slot] = draw.choice(free, p=weights[free] / weights[free].sum())
    return drawn


def _among(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[places] == values
