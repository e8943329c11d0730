"""Rows of users and items: who met what, when, and whether it was liked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

PAST, RECENT, TEST = 0, 1, 2  # the cloud's first training data; what came since; what only scores


@dataclass(frozen=True, eq=False)
class Interactions:
    """Rows (N,) sorted by user, then time; arrays may be memory-mapped.

    users, items: int32 from 0. labels: uint8, 0 or 1. times: int64, seconds. parts: uint8, PAST,
    RECENT or TEST, never decreasing within a user. profiles (num_users, P) and features
    (num_items, F): int16, categorical codes. clusters (num_users,): int16, known of a made-up world
    only. Raises ValueError for rows that are not in order.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    times: np.ndarray
    parts: np.ndarray
    profiles: np.ndarray
    features: np.ndarray
    clusters: np.ndarray | None = None

    def __post_init__(self) -> None:
        is_same = self.users[1:] == self.users[:-1]
        is_later = (self.times[1:] >= self.times[:-1]) & (self.parts[1:] >= self.parts[:-1])
        if not ((self.users[1:] > self.users[:-1]) | (is_same & is_later)).all():
            raise ValueError("rows must be sorted by user, then time, with parts in order")

    @property
    def num_users(self) -> int:
        """Number of users, those without rows included."""
        return len(self.profiles)

    @property
    def num_items(self) -> int:
        """Number of items, those without rows included."""
        return len(self.features)

    @property
    def profile_sizes(self) -> tuple[int, ...]:
        """Number of codes of each column of the profiles."""
        return _sizes(self.profiles)

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Number of codes of each column of the features."""
        return _sizes(self.features)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Row at which each user begins, and the number of rows: (num_users + 1,) int64."""
        return np.searchsorted(self.users, np.arange(self.num_users + 1))

    @cached_property
    def moments(self) -> np.ndarray:
        """Rows at which a user or a time begins, ascending."""
        is_new = np.ones(len(self.users), dtype=bool)
        is_new[1:] = (self.users[1:] != self.users[:-1]) | (self.times[1:] != self.times[:-1])
        return np.flatnonzero(is_new)

    @cached_property
    def liked(self) -> np.ndarray:
        """Rows with label 1, ascending."""
        return np.flatnonzero(self.labels)

    def rows_of(self, user: int, part: int | None = None) -> np.ndarray:
        """Return the numbers of a user's rows, of one part or of all."""
        start, end = self.offsets[user : user + 2]
        if part is None:
            return np.arange(start, end)
        first, last = np.searchsorted(self.parts[start:end], [part, part + 1])
        return np.arange(start + first, start + last)

    def rows_in(self, part: int) -> np.ndarray:
        """Return the numbers of all rows of a part."""
        return np.flatnonzero(self.parts == part)

    def activity_deciles(self, users: np.ndarray) -> np.ndarray:
        """Return 1 (least active) to 10 for each of the users, by rows before TEST.

        Activity counts among these users; who is as active as another stays in the order given.
        """
        active = np.bincount(self.users[self.parts < TEST], minlength=self.num_users)
        deciles = np.empty(len(users), dtype=np.int64)
        by_activity = np.argsort(active[users], kind="stable")
        deciles[by_activity] = 1 + np.arange(len(users)) * 10 // max(1, len(users))
        return deciles


def _sizes(codes: np.ndarray) -> tuple[int, ...]:
    return tuple(int(column.max(initial=-1)) + 1 for column in codes.T)
