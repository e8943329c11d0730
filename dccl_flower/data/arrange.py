"""From rows as they were found, in any order and with any names, to a log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from dccl_flower.config import ConfError
from dccl_flower.data.interactions import Interactions
from dccl_flower.data.log_split import parts_of
from dccl_flower.data.negatives import draw_negatives
from dccl_flower.interaction_config import LogDataConf
from dccl_flower.seeds import numpy_generator

logger = logging.getLogger("dccl_flower")
STARS = 4.0  # from which a rating is a label of 1 where nothing else is asked for

Codes = Mapping[Any, tuple[int, ...]]


@dataclass(frozen=True)
class Found:
    """Rows as they were found: ids of any one kind, ratings (None: implicit), times in seconds.

    ``profiles`` and ``features``: codes from 1 by a user's or an item's id; who is not in there
    gets zeros. ``where`` opens what is said of the rows, as in ``data.path=ratings.csv``.
    """

    where: str
    users: Any
    items: Any
    ratings: np.ndarray | None
    times: np.ndarray
    profiles: Codes = field(default_factory=dict)
    features: Codes = field(default_factory=dict)


def arrange(found: Found, conf: LogDataConf, seed: int) -> Interactions:
    """Return the rows as a log: sorted, without duplicates, filtered, labelled and split.

    Of rows of the same user, item and time the first stays. Items of TEST alone are kept, and so
    are users without rows there. Raises ConfError where nothing is left, or what the configuration
    asks for cannot be had.
    """
    if not len(found.times):
        raise ConfError(f"{found.where}: holds no rows")
    labels = _labels(found, conf)
    users, user_ids = _coded(found.users)
    items, item_ids = _coded(found.items)
    times = np.asarray(found.times, dtype=np.int64)
    kept = _without_duplicates(users, items, times)
    kept = kept[in_core(users[kept], items[kept], conf.k_core)]
    if not len(kept):
        raise ConfError(f"data.k_core={conf.k_core}: leaves none of {len(users)} rows")
    times, labels = times[kept], labels[kept]
    chosen_users, users = np.unique(users[kept], return_inverse=True)
    chosen_items, items = np.unique(items[kept], return_inverse=True)
    rows = [users, items, labels, times, parts_of(users, times, conf.split)]
    if conf.implicit:
        rows = _with_negatives(rows, conf, seed)
    users, items, labels, times, parts = rows
    return Interactions(
        users.astype(np.int32),
        items.astype(np.int32),
        labels,
        times,
        parts,
        _table(found.profiles, user_ids, chosen_users),
        _table(found.features, item_ids, chosen_items),
    )


def in_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Return which rows (N,) bool are left when each of their users and items has k rows left."""
    kept = np.ones(len(users), dtype=bool)
    count, left = -1, len(users)
    while left != count:
        count = left
        for codes in (users, items):
            kept &= np.bincount(codes[kept], minlength=codes.max(initial=0) + 1)[codes] >= k
        left = int(kept.sum())
    return kept


def _labels(found: Found, conf: LogDataConf) -> np.ndarray:
    if found.ratings is None or conf.implicit:
        return np.ones(len(found.times), dtype=np.uint8)
    threshold = conf.threshold
    if threshold is None and conf.name == "table":
        others = found.ratings[~np.isin(found.ratings, (0, 1))]
        if len(others):
            given = f"data.label_column={conf.label_column}: holds {others[0]:g}"
            raise ConfError(f"{given}, which is no label of 0 or 1; give data.threshold")
        threshold = 1.0
    return (found.ratings >= (STARS if threshold is None else threshold)).astype(np.uint8)


def _coded(ids: Any) -> tuple[np.ndarray, list[Any]]:
    """Return a number from 0 for each id, in the order of ids, and the ids in that order."""
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else pa.array(ids)
    encoded = array.dictionary_encode()
    there = encoded.dictionary.to_pylist()
    order = sorted(range(len(there)), key=there.__getitem__)
    rank = np.empty(len(there), dtype=np.int64)
    rank[order] = np.arange(len(there))
    return rank[encoded.indices.to_numpy()], [there[place] for place in order]


def _without_duplicates(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the rows to keep, sorted by user, time and item."""
    order = np.lexsort((items, times, users))
    is_new = np.ones(len(order), dtype=bool)
    same = [column[order[1:]] == column[order[:-1]] for column in (users, items, times)]
    is_new[1:] = ~np.logical_and.reduce(same)
    if dropped := len(order) - int(is_new.sum()):
        logger.info("%d rows of the same user, item and time as another were dropped", dropped)
    return order[is_new]


def _with_negatives(rows: list[np.ndarray], conf: LogDataConf, seed: int) -> list[np.ndarray]:
    users, items, labels, times, parts = rows
    counts = np.bincount(items).astype(np.float64)
    weights = counts if conf.negatives_by == "popularity" else np.ones(len(counts))
    draw = numpy_generator(seed, "negatives")
    try:
        drawn = draw_negatives(users, items, conf.negatives, weights, draw)
    except ValueError as error:
        raise ConfError(f"data.negatives={conf.negatives}: {error}") from error
    ever = conf.negatives + 1
    users, times, parts = (np.repeat(column, ever) for column in (users, times, parts))
    items = np.column_stack([items, drawn]).ravel()
    labels = np.column_stack([labels, np.zeros(drawn.shape, np.uint8)]).ravel()
    order = np.lexsort((parts, times, users))
    return [column[order] for column in (users, items, labels, times, parts)]


def _table(codes: Codes, ids: list[Any], chosen: np.ndarray) -> np.ndarray:
    """Return the codes (len(chosen), columns) int16 of the chosen ids."""
    unknown = (0,) * len(next(iter(codes.values()), ()))
    rows = [codes.get(ids[place], unknown) for place in chosen]
    return np.array(rows, dtype=np.int16).reshape(len(chosen), len(unknown))
