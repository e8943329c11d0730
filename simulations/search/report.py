"""The ablation that a search leaves: what was changed, and what it brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dccl_flower.config import Conf
from dccl_flower.simulations.arms.report import heading
from dccl_flower.simulations.reports import cell, machine, report, table, versions
from dccl_flower.simulations.search.space import BOUND

Row = Mapping[str, Any]
FIRST, LAST = ("changes", "rounds"), ("gap closed", "swing, points", "MB a device")


def markdown(rows: Sequence[Row], conf: Conf, command: str) -> str:
    """Return a table a stage, best first, under the command and its setting.

    The gap lies between what the method's first reference scores and the best bound.
    """
    good = [row for row in rows if "error" not in row]
    best = max((row["score"] for row in good if row["kind"] == BOUND), default=None)
    names = list(dict.fromkeys(name for row in good for name in row["scores"]))
    steps = conf.rounds.count * conf.rounds.local_steps
    parts = [
        f"Images that neither side holds, seed {conf.seed}, {steps} steps a side or a third of "
        f"them; {machine(versions())}.",
    ]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        parts += [
            f"## {stage}",
            _table(_latest([r for r in rows if r["stage"] == stage]), names, best),
        ]
    return report(f"Search on {conf.name}", command, *parts)


def _latest(rows: Sequence[Row]) -> list[Row]:
    """Return each candidate once, with all rounds where it came so far, best first."""
    latest: dict[str, Row] = {}
    for row in rows:
        latest[row["name"]] = row
    return sorted(latest.values(), key=lambda r: (r["all_rounds"], r.get("score", 0)), reverse=True)


def _table(rows: Sequence[Row], names: Sequence[str], best: float | None) -> str:
    headings = [*FIRST, *(heading(name) for name in names), *LAST]
    return table(headings, [_cells(row, names, best) for row in rows])


def _cells(row: Row, names: Sequence[str], best: float | None) -> list[str]:
    if "error" in row:
        return [row["name"], f"failed: {row['error']}", *[""] * (len(names) + len(LAST))]
    return [
        row["name"],
        "all" if row["all_rounds"] else "a third",
        *(cell(row["scores"].get(name), ".1f", 100) for name in names),
        _gap(row, best),
        cell(row["swing"], ".1f", 100),
        cell(row["bytes_a_device"] / 1e6, ".2f"),
    ]


def _gap(row: Row, best: float | None) -> str:
    low = row["reference"]
    if best is None or low is None or best == low:
        return "-"
    return f"{(row['score'] - low) / (best - low):.2f}"
