"""Which rows of a log are past, recent, or to be scored."""

from __future__ import annotations

import numpy as np

from dccl_flower.config import ConfError
from dccl_flower.data.interactions import PAST, RECENT, TEST
from dccl_flower.interaction_config import LogSplitConf


def parts_of(users: np.ndarray, times: np.ndarray, conf: LogSplitConf) -> np.ndarray:
    """Return the part (N,) uint8 of each of the rows, which are sorted by user, then time.

    By time, what is of one moment stays together. A user with no more rows than are left out has
    them all in TEST. Raises ConfError where the cloud has no past, or nothing is to be scored.
    """
    find = _by_time if conf.by == "time" else _last_out
    is_recent, is_test = find(users, times, conf)
    parts = np.where(is_test, TEST, np.where(is_recent, RECENT, PAST)).astype(np.uint8)
    for part, name in ((PAST, "past"), (TEST, "test")):
        if not (parts == part).any():
            raise ConfError(f"data.split.by={conf.by}: leaves no {name} rows of {len(parts)}")
    return parts


def _by_time(
    users: np.ndarray, times: np.ndarray, conf: LogSplitConf
) -> tuple[np.ndarray, np.ndarray]:
    test_from = _moment(times, conf.test) if conf.test_from is None else conf.test_from
    recent_share = min(1.0, conf.recent + conf.test)
    recent_from = _moment(times, recent_share) if conf.recent_from is None else conf.recent_from
    return times >= recent_from, times >= test_from


def _moment(times: np.ndarray, share: float) -> int:
    """Return the time at which the last share of the rows begins."""
    place = min(len(times) - 1, round((1 - share) * len(times)))
    return int(np.partition(times, place)[place])


def _last_out(
    users: np.ndarray, times: np.ndarray, conf: LogSplitConf
) -> tuple[np.ndarray, np.ndarray]:
    starts = np.searchsorted(users, users)
    to_end = np.searchsorted(users, users, side="right") - np.arange(len(users))
    kept = to_end + np.arange(len(users)) - starts - conf.last
    recent = np.round(kept * conf.recent)
    return to_end <= conf.last + recent, to_end <= conf.last
