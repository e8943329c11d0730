"""The ablation that a search leaves: what was changed, and what it brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dccl_flower.config import Conf
from dccl_flower.simulations.reports import (
    cell,
    gap_closed,
    heading,
    machine,
    report,
    table,
    versions,
)
from dccl_flower.simulations.search.space import BOUND

Row = Mapping[str, Any]
LAST = ("gap closed", "swing, points", "MB a device")


def markdown(rows: Sequence[Row], conf: Conf, command: str) -> str:
    """Return a table a stage, best first, under the command and its setting.

    The gap lies between what the method's first reference scores and the best bound.
    """
    good = [row for row in rows if "error" not in row]
    best = max((row["score"] for row in good if row["kind"] == BOUND), default=None)
    names = list(dict.fromkeys(name for row in good for name in row["scores"]))
    headings = ["changes", "rounds", *map(heading, names), *LAST]
    parts = [
        f"Images that neither side holds, seed {conf.seed}, {conf.rounds.steps} steps a side or a "
        f"third of them; {machine(versions())}.",
    ]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        found = _latest([row for row in rows if row["stage"] == stage])
        parts += [f"## {stage}", table(headings, [_cells(row, names, best) for row in found])]
    return report(f"Search on {conf.name}", command, *parts)


def _latest(rows: Sequence[Row]) -> list[Row]:
    """Return each candidate once, with all rounds where it came so far, best first."""
    latest = {row["name"]: row for row in rows}.values()
    return sorted(latest, key=lambda row: (row["all_rounds"], row.get("score", 0)), reverse=True)


def _cells(row: Row, names: Sequence[str], best: float | None) -> list[str]:
    if "error" in row:
        return [row["name"], f"failed: {row['error']}", *[""] * (len(names) + len(LAST))]
    return [
        row["name"],
        "all" if row["all_rounds"] else "a third",
        *(cell(row["scores"].get(name), ".1f", 100) for name in names),
        cell(gap_closed(row["score"], row["reference"], best), ".2f"),
        cell(row["swing"], ".1f", 100),
        cell(row["bytes_a_device"] / 1e6, ".2f"),
    ]
