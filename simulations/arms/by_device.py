"""Arms held against each other device by device: by group, and in paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dccl_flower.learning.ranking import paired_interval
from dccl_flower.seeds import numpy_generator
from dccl_flower.simulations.arms.arms import ArmTable, Key
from dccl_flower.simulations.figures import save_plot
from dccl_flower.simulations.reports import spread, spread_cell, table

LEVEL = 0.95


class ByDevice:
    """What devices scored, by arm and seed, as rows (device, value, weight, group).

    A device without a value (nan) counts in no mean; ``unscored`` tells how many of how many.
    """

    def __init__(self, table: ArmTable, results: Mapping[Key, Mapping[str, Any]]) -> None:
        found = {key: each["devices"] for key, each in results.items() if "devices" in each}
        self.table = table
        self.grouped_by = next((each["grouped_by"] for each in found.values()), "")
        self.rows = {key: np.array(each["rows"], float) for key, each in found.items()}
        self.seeds = sorted({seed for _, seed in self.rows})
        named = {arm for arm, _ in self.rows}
        self.arms = [arm for arm in table.arms if arm in named]
        self.groups = sorted({int(g) for rows in self.rows.values() for g in rows[:, 3]})

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def unscored(self) -> tuple[int, int]:
        """How many devices have no value, and how many there are, in the first result."""
        rows = next(iter(self.rows.values()))
        return int(np.isnan(rows[:, 1]).sum()), len(rows)

    def of_group(self, arm: str, group: int) -> dict[str, Any]:
        """Return mean and deviation over seeds of an arm's weighted mean over a group."""
        parts = (self.rows[arm, seed] for seed in self.seeds if (arm, seed) in self.rows)
        return spread(_mean(rows[rows[:, 3] == group]) for rows in parts)

    def difference(self, arm: str, other: str) -> tuple[float, float, float] | None:
        """Return the mean of arm - other over devices of all seeds, and its interval's bounds.

        A device of one seed is held against itself. None where they have no device in common.
        """
        pairs = [
            _paired(self.rows[arm, seed], self.rows[other, seed])
            for seed in self.seeds
            if (arm, seed) in self.rows and (other, seed) in self.rows
        ]
        joined = np.concatenate([np.empty((2, 0)), *pairs], axis=1)
        if not joined.size:
            return None
        differences, weights = joined
        draw = numpy_generator(0, "interval", arm, other)
        low, high = paired_interval(differences, weights, draw, LEVEL)
        return float(np.average(differences, weights=weights)), low, high


def group_table(found: ByDevice) -> str:
    """Return every arm's means by group, in percent."""
    headings = [found.grouped_by, *map(str, found.groups)]
    rows = [
        [
            found.table.arms[arm].title,
            *(spread_cell(found.of_group(arm, group), ".1f", 100) for group in found.groups),
        ]
        for arm in found.arms
    ]
    return table(headings, rows)


def difference_table(found: ByDevice) -> str:
    """Return every arm's difference to every other, in points with its interval."""
    rows = []
    for arm in found.arms:
        cells = []
        for other in found.arms:
            told = None if arm == other else found.difference(arm, other)
            cells.append("" if told is None else _points(*told))
        rows.append([found.table.arms[arm].title, *cells])
    return table(["points above", *(found.table.arms[arm].title for arm in found.arms)], rows)


def sections(found: ByDevice) -> list[str]:
    """Return the parts of a report: by group, and differences."""
    none, there = found.unscored
    return [
        f"By {found.grouped_by}, in %; {none} of {there} devices have no score of their own",
        group_table(found),
        f"Differences between arms on the same devices, points, with {LEVEL:.0%} intervals by "
        "bootstrap over devices",
        difference_table(found),
    ]


def plot_groups(found: ByDevice, score: str, title: str, path: Path) -> None:
    """Draw each arm's mean by group, with its deviation over seeds."""
    figure = Figure(figsize=(8, 5 + len(found.arms) / 5), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab20"](range(20))  # as many as there are arms of a method, and more
    axes.set_prop_cycle(color=[*colours[::2], *colours[1::2]])
    for arm in found.arms:
        told = [found.of_group(arm, group) for group in found.groups]
        means, spreads = (np.array([each[of] for each in told], float) for of in ("mean", "std"))
        label = found.table.arms[arm].title
        spreads = np.nan_to_num(spreads)
        axes.errorbar(found.groups, means, spreads, fmt="-o", markersize=4, capsize=2, label=label)
    axes.set(xlabel=found.grouped_by, ylabel=f"test {score.replace('_', ' ')}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1, fontsize=9)
    figure.suptitle(title)
    save_plot(figure, path)


def _mean(rows: np.ndarray) -> float | None:
    known = rows[~np.isnan(rows[:, 1])]
    return float(np.average(known[:, 1], weights=known[:, 2])) if len(known) else None


def _paired(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return differences and weights of the devices that have a value in both."""
    _, here, there = np.intersect1d(own[:, 0], other[:, 0], return_indices=True)
    differences = own[here, 1] - other[there, 1]
    known = ~np.isnan(differences)
    return differences[known], own[here, 2][known]


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
