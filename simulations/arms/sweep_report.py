"""What a sweep found: means and deviations over seeds by value and arm, as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dccl_flower.simulations import reports
from dccl_flower.simulations.arms.arms import ArmTable
from dccl_flower.simulations.arms.report import Comparison, columns, first_score
from dccl_flower.simulations.arms.sweep import Sweep, SweptKey
from dccl_flower.simulations.reports import spread, spread_cell, table


class SweepComparison:
    """Results by value, arm and seed: ``summaries`` has, by value, what a comparison of arms has.

    ``differing``: a line on each arm and value whose first score is another one than the first's.
    """

    def __init__(
        self, rows: ArmTable, sweep: Sweep, results: Mapping[SweptKey, Mapping[str, Any]]
    ) -> None:
        self.rows = rows
        self.sweep = sweep
        scores = {
            f"{name}, {sweep.key}={value}": result["scores"]
            for (value, name, _), result in results.items()
        }
        self.first, self.differing = first_score(scores)
        self.scores = list(dict.fromkeys(name for found in scores.values() for name in found))
        self.seeds = sorted({seed for *_, seed in results})
        self.versions = next(iter(results.values()))["versions"]
        self.summaries: dict[str, dict[str, Any]] = {}
        for value in sweep.values:
            found = {(arm, seed): r for (at, arm, seed), r in results.items() if at == value}
            if found:
                self.summaries[value] = Comparison(rows, found).summary

    def points(self, name: str) -> dict[str, tuple[float, float]]:
        """Return mean and deviation of an arm's first score by value."""
        return {
            value: (found["mean"], found["std"] or 0.0)
            for value, summary in self.summaries.items()
            if (found := _found(summary.get(name, {}), self.first))["mean"] is not None
        }

    def content(self) -> dict[str, Any]:
        """Return what JSON keeps of it."""
        return {"versions": self.versions, "key": self.sweep.key, "values": self.summaries}


def markdown(comparison: SweepComparison, title: str, command: str) -> str:
    """Return a table by value and arm; what nothing has measured has no column."""
    rows = [(value, row) for value, arms in comparison.summaries.items() for row in arms.values()]
    shown = [
        column
        for column in columns(comparison.scores)
        if any(_found(row, column[1])["mean"] is not None for _, row in rows)
    ]
    cells = (
        [
            shown_value(value),
            row["title"],
            *(spread_cell(_found(row, key), style, factor) for _, key, factor, style in shown),
        ]
        for value, row in rows
    )
    of = f"Test set, {reports.of_seeds(comparison.seeds)}; {reports.machine(comparison.versions)}."
    headings = [f"`{comparison.sweep.key}`", "arm", *(heading for heading, *_ in shown)]
    return reports.report(title, command, of, table(headings, cells, words=2))


def shown_value(value: str) -> str:
    """Return a value as tables and plots have it."""
    return value or "null"


def _found(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return row.get(key) or spread([])
