"""The comparison of the arms: means and deviations over seeds, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from dccl_flower.simulations import reports
from dccl_flower.simulations.arms.arms import ArmTable, Key
from dccl_flower.simulations.arms.by_device import ByDevice, sections
from dccl_flower.simulations.reports import cell, spread, spread_cell, table

MILESTONES = (0.5, 0.8, 0.9)
LAST_ROUNDS = 10

# What a comparison adds to the scores: heading, key of a row, factor, format.
COSTS = (
    ("gap closed", "gap_closed", 1, ".2f"),
    ("mean of the last ten rounds, %", "late", 100, ".1f"),
    ("swing, points", "swing", 100, ".1f"),
    ("MB a device", "bytes_a_device", 1e-6, ".2f"),
    ("seconds", "seconds", 1, ".0f"),
)
EPSILON = "epsilon"  # of differential privacy, where a run has it


class Comparison:
    """Results by arm and seed, and what follows from them.

    A score's gap closed is (arm - low) / (high - low) of the first score and the same seed, None
    where one of the two is missing, or by ``no_gap``, a line that says why the two are too close. A
    swing is the largest change of the first score from one round
    to the next among the last ten. ``summary`` has for every arm each value by seed, its mean, and
    its sample standard deviation; ``curves`` for the arms drawn so, by round, (bytes a device, mean
    gap closed, deviation). ``differing``: a line on each arm whose first score is another one than
    that of the first arm, against which no gap is measured.
    """

    def __init__(self, table: ArmTable, results: Mapping[Key, Mapping[str, Any]]) -> None:
        self.table = table
        self.results = results
        by_arm = {name: result["scores"] for (name, _), result in results.items()}
        first, self.differing = first_score(by_arm)
        self.seeds = sorted({seed for _, seed in results})
        scores = (name for result in results.values() for name in result["scores"])
        self.scores = list(dict.fromkeys(scores))
        self._first = {
            key: result["scores"][first]
            for key, result in results.items()
            if _first_of(result["scores"]) == first
        }
        self.no_gap = self._no_gap()
        self.has_epsilon = any(EPSILON in result for result in results.values())
        names = [name for name in table.arms if any(arm == name for arm, _ in results)]
        self.summary = {name: self._summary(name) for name in names}
        curves = {name: self._curve(name) for name in names if table.arms[name].curve}
        self.curves = {name: points for name, points in curves.items() if points}
        self.by_device = ByDevice(table, results)

    def title(self, name: str | None) -> str:
        """Return an arm's name in tables and plots."""
        return self.table.arms[name or ""].title

    def gap_closed(self, score: float | None, seed: int) -> float | None:
        """Return which share of the way from the low arm to the high one a score lies at."""
        if self.no_gap:
            return None
        ends = (self.table.low or "", self.table.high or "")
        return reports.gap_closed(score, *(self._first.get((arm, seed)) for arm in ends))

    def _no_gap(self) -> str:
        """Return why gaps between low and high arm mean nothing; an empty text where they do."""
        low, high = (self.table.low or "", self.table.high or "")
        apart = [
            self._first[high, seed] - self._first[low, seed]
            for seed in self.seeds
            if {(low, seed), (high, seed)} <= self._first.keys()
        ]
        found = spread(apart)
        if not apart or (found["mean"] > 0 and found["mean"] >= 2 * (found["std"] or 0)):
            return ""
        by = spread_cell(found, ".1f", 100)
        ends = f"from *{self.title(low)}* to *{self.title(high)}*"
        told = f"Gaps closed are left out: {ends} it is {by}"
        return f"{told} points, which is too little to measure by."

    def _summary(self, name: str) -> dict[str, Any]:
        rows: dict[int, dict[str, Any]] = {}
        for seed in self.seeds:
            if result := self.results.get((name, seed)):
                own = _first_of(result["scores"])
                by_round = [each[own] for each in result["rounds"]]
                found = {
                    "gap_closed": self.gap_closed(self._first.get((name, seed)), seed),
                    "late": mean(by_round[-LAST_ROUNDS:]) if len(by_round) > 1 else None,
                    "swing": largest_swing(by_round),
                }
                rows[seed] = {**result, **result["scores"], **found}
        summary: dict[str, Any] = {"title": self.title(name)}
        for key in (
            *self.scores,
            *(key for _, key, _, _ in COSTS),
            *([EPSILON] * self.has_epsilon),
        ):
            values = {seed: row.get(key) for seed, row in rows.items()}
            summary[key] = {"seeds": values, **spread(values.values())}
        return summary

    def _curve(self, name: str) -> list[tuple[float, float, float]]:
        ways = {
            seed: result["rounds"]
            for (arm, seed), result in self.results.items()
            if arm == name and self.gap_closed(self._first.get((arm, seed)), seed) is not None
        }
        points = []
        for rounds in zip(*ways.values(), strict=False):
            scored = [each[self.scores[0]] for each in rounds]
            gaps = spread(map(self.gap_closed, scored, ways))
            sent = mean(each["bytes_a_device"] for each in rounds)
            points.append((sent, gaps["mean"], gaps["std"] or 0.0))
        return points


def first_score(scores: Mapping[str, Mapping[str, float]]) -> tuple[str, list[str]]:
    """Return the name of the score that counts, and a line on each whose first is another one."""
    (who, names), *others = scores.items()
    first = _first_of(names)
    return first, [
        f"{other}: its first score is {name} and that of {who} is {first}; they cannot be compared"
        for other, found in others
        if (name := _first_of(found)) != first
    ]


def _first_of(scores: Mapping[str, float]) -> str:
    return next(iter(scores))


def columns(scores: Sequence[str]) -> list[tuple[str, str, float, str]]:
    """Return the columns of numbers: heading, key of a summary, factor, format."""
    return [*((reports.heading(name), name, 100.0, ".1f") for name in scores), *COSTS]


def largest_swing(scores: Sequence[float]) -> float | None:
    """Return the largest change from one of the last rounds to the next, None without rounds."""
    late = scores[-LAST_ROUNDS:]
    return max((abs(b - a) for a, b in pairwise(late)), default=None)


def markdown(comparison: Comparison, title: str, command: str) -> str:
    """Return the tables: all arms, gap closed against bytes, and what references tell beside."""
    found = next(iter(comparison.results.values()))["versions"]
    parts = [
        f"Test set, {reports.of_seeds(comparison.seeds)}; {reports.machine(found)}.",
        _arms_table(comparison),
        *filter(None, [comparison.no_gap]),
    ]
    if comparison.curves:
        parts += ["MB a device until the mean gap closed reaches", _bytes_table(comparison)]
    if comparison.by_device:
        parts += sections(comparison.by_device)
    if others := _reference_table(comparison):
        parts += ["What else is known of the models that scores are held against", others]
    return reports.report(title, command, *parts)


def _arms_table(comparison: Comparison) -> str:
    shown = columns(comparison.scores)
    if comparison.has_epsilon:
        shown.append((EPSILON, EPSILON, 1, ".2f"))
    rows = (
        [row["title"], *(spread_cell(row[key], style, factor) for _, key, factor, style in shown)]
        for row in comparison.summary.values()
    )
    return table(["arm", *(title for title, *_ in shown)], rows)


def _bytes_table(comparison: Comparison) -> str:
    rows = []
    for name, points in comparison.curves.items():
        sent, gap, _ = points[-1]
        reached = [next((s for s, g, _ in points if g >= least), None) for least in MILESTONES]
        megabytes = (None if each is None else each / 1e6 for each in (*reached, sent))
        cells = (cell(value, ".2f") for value in (*megabytes, gap))
        rows.append([comparison.title(name), *cells])
    return table(["arm", *map(str, MILESTONES), "in all", "gap closed"], rows)


def _reference_table(comparison: Comparison) -> str:
    """Return the references' scores that no arm has, over the seeds of the first arm with any."""
    name = next((arm for (arm, _), r in comparison.results.items() if r["references"]), None)
    found = [r["references"] for (arm, _), r in comparison.results.items() if arm == name]
    rows = []
    for model, scores in (found[0] if found else {}).items():
        for score in (each for each in scores if each not in comparison.scores):
            value = spread(each[model][score] for each in found)
            rows.append([f"{model}: {score}".replace("_", " "), spread_cell(value, ".2f")])
    return table(["", "value"], rows) if rows else ""
