"""The comparison of the arms: means and deviations over seeds, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from dccl_flower.simulations.arms.arms import ArmTable
from dccl_flower.simulations.reports import (
    cell,
    machine,
    of_seeds,
    report,
    spread,
    spread_cell,
    table,
)

Results = Mapping[tuple[str, int], Mapping[str, Any]]
Curves = dict[str, list[tuple[float, float, float]]]
MILESTONES = (0.5, 0.8, 0.9)
SWING_ROUNDS = 10

# What a comparison adds to the scores: heading, key of a row, factor, format.
COSTS = (
    ("gap closed", "gap_closed", 1, ".2f"),
    ("swing, points", "swing", 100, ".1f"),
    ("MB a device", "bytes_a_device", 1e-6, ".2f"),
    ("seconds", "seconds", 1, ".0f"),
)


class Comparison:
    """Results by arm and seed, and what follows from them.

    A score's gap closed is (arm - low) / (high - low) of the first score and the same seed, None
    where one of the two is missing. A swing is the largest change of the first score from one round
    to the next among the last ten.
    """

    def __init__(self, arms: ArmTable, results: Results) -> None:
        self.arms = arms
        self.results = results
        self.names = [name for name in arms.arms if any(arm == name for arm, _ in results)]
        scores = (name for result in results.values() for name in result["scores"])
        self.scores = list(dict.fromkeys(scores))

    def summary(self) -> dict[str, Any]:
        """Return for every arm each value by seed, its mean, and its sample standard deviation."""
        return {name: self._summary(name) for name in self.names}

    def gap_closed(self, score: float, seed: int) -> float | None:
        """Return which share of the way from the low arm to the high one a score lies at."""
        ends = [self.results.get((arm or "", seed)) for arm in (self.arms.low, self.arms.high)]
        if any(end is None for end in ends):
            return None
        low, high = (end["scores"][self.scores[0]] for end in ends if end is not None)
        return None if low == high else float((score - low) / (high - low))

    def curves(self) -> Curves:
        """Return (bytes a device, mean gap closed, deviation) by round for the arms drawn so."""
        curves = {}
        for name in (name for name in self.names if self.arms.arms[name].curve):
            points = []
            for each in zip(*self._ways(name), strict=False):
                sent, values = zip(*each, strict=True)
                deviation = stdev(values) if len(values) > 1 else 0.0
                points.append((mean(sent), mean(values), deviation))
            if points:
                curves[name] = points
        return curves

    def _ways(self, name: str) -> list[list[tuple[float, float]]]:
        ways = []
        for (arm, seed), result in self.results.items():
            if arm == name:
                rounds = result["rounds"]
                gaps = [self.gap_closed(each[self.scores[0]], seed) for each in rounds]
                known = [gap for gap in gaps if gap is not None]
                if known and len(known) == len(gaps):
                    sent = [each["bytes_a_device"] for each in rounds]
                    ways.append(list(zip(sent, known, strict=True)))
        return ways

    def _summary(self, name: str) -> dict[str, Any]:
        first, rows = self.scores[0], {}
        for (arm, seed), result in sorted(self.results.items()):
            if arm == name:
                scores = result["scores"]
                swing = largest_swing([each[first] for each in result["rounds"]])
                gap = self.gap_closed(scores[first], seed)
                rows[seed] = {**result, **scores, "gap_closed": gap, "swing": swing}
        summary: dict[str, Any] = {"title": self.arms.arms[name].title}
        for key in (*self.scores, *(key for _, key, _, _ in COSTS)):
            values = {seed: row.get(key) for seed, row in rows.items()}
            summary[key] = {"seeds": values, **spread(values.values())}
        return summary


def largest_swing(scores: Sequence[float]) -> float | None:
    """Return the largest change from one of the last rounds to the next, None without rounds."""
    late = scores[-SWING_ROUNDS:]
    return max((abs(b - a) for a, b in pairwise(late)), default=None)


def markdown(comparison: Comparison, title: str, command: str) -> str:
    """Return the tables: all arms, gap closed against bytes, and what references tell beside."""
    seeds = sorted({seed for _, seed in comparison.results})
    found = next(iter(comparison.results.values()))["versions"]
    parts = [f"Test set, {of_seeds(seeds)}; {machine(found)}.", _arms_table(comparison)]
    if curves := comparison.curves():
        parts += ["MB a device until the mean gap closed reaches", _bytes_table(comparison, curves)]
    if others := _reference_table(comparison):
        parts += ["What else is known of the models that scores are held against", others]
    return report(title, command, *parts)


def heading(score: str) -> str:
    """Return a score's name as tables have it."""
    return f"{score.replace('_', ' ')}, %"


def _arms_table(comparison: Comparison) -> str:
    columns = [(heading(name), name, 100.0, ".1f") for name in comparison.scores] + list(COSTS)
    rows = (
        [row["title"], *(spread_cell(row[key], style, factor) for _, key, factor, style in columns)]
        for row in comparison.summary().values()
    )
    return table(["arm", *(title for title, *_ in columns)], rows)


def _bytes_table(comparison: Comparison, curves: Curves) -> str:
    rows = []
    for name, points in curves.items():
        sent, gap, _ = points[-1]
        reached = [next((s for s, g, _ in points if g >= least), None) for least in MILESTONES]
        megabytes = (None if each is None else each / 1e6 for each in (*reached, sent))
        cells = (cell(value, ".2f") for value in (*megabytes, gap))
        rows.append([comparison.arms.arms[name].title, *cells])
    return table(["arm", *map(str, MILESTONES), "in all", "gap closed"], rows)


def _reference_table(comparison: Comparison) -> str:
    """Return the references' scores that no arm has, over the seeds of the first arm with any."""
    name = next((arm for (arm, _), r in comparison.results.items() if r["references"]), None)
    found = [r["references"] for (arm, _), r in comparison.results.items() if arm == name]
    rows = []
    for model, scores in (found[0] if found else {}).items():
        for score in (each for each in scores if each not in comparison.scores):
            value = spread(each[model][score] for each in found)
            label = f"{model.replace('_', ' ')}: {score.replace('_', ' ')}"
            rows.append([label, spread_cell(value, ".2f")])
    return table(["", "value"], rows) if rows else ""
