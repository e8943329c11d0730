"""Turns of several devices that share one message."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dccl_flower.codecs import encode_exact
from dccl_flower.learning.fusion import Copy, Fusion, State, merge

MERGE_AFTER = 16


class MergedTurns:
    """Copies of devices merged by a fusion rule as they come in, and their metrics in lists."""

    def __init__(self, fusion: Fusion) -> None:
        self._fusion = fusion
        self._copies: list[Copy] = []
        self._metrics: dict[str, list[Any]] = {}

    def add(self, state: State, count: int, metrics: dict[str, Any]) -> None:
        """Take one device's trained state, its sample count and its metrics."""
        own = {**metrics, "num-examples-each": count}
        counts = own.pop("class-counts", None)
        self._copies.append(Copy(state, count, None if counts is None else torch.tensor(counts)))
        for name, value in own.items():
            self._metrics.setdefault(name, []).append(value)
        if len(self._copies) == MERGE_AFTER:  # or memory would grow with the devices
            self._copies = [merge(self._copies, self._fusion)]

    def result(self) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        """Return the merged copy in float64, all devices' samples, and the metrics."""
        merged = merge(self._copies, self._fusion)
        metrics = dict(self._metrics)
        if merged.class_counts is not None:
            metrics["class-counts"] = merged.class_counts.tolist()
        return encode_exact(merged.state), int(merged.count), metrics
