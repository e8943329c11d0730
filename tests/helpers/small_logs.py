"""Logs small enough to be read."""

from __future__ import annotations

import numpy as np

from dccl_flower.data.interactions import Interactions


def small_log(rows, num_users=3, num_items=9, **tables):
    """Return a log of rows (user, item, label, time, part), in their order."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    kinds = (np.int32, np.int32, np.uint8, np.int64, np.uint8)
    profiles = tables.pop("profiles", np.zeros((num_users, 0), np.int16))
    features = tables.pop("features", np.zeros((num_items, 0), np.int16))
    arrays = [column.astype(kind) for column, kind in zip(columns, kinds, strict=True)]
    return Interactions(*arrays, profiles, features, **tables)
