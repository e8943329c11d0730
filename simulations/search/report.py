"""The ablation that a search leaves: what was changed, and what it brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dccl_flower.config import Conf
from dccl_flower.simulations.reports import cell, machine, report, table, versions

Row = Mapping[str, Any]
HEADINGS = (
    *("changes", "rounds", "accuracy, %", "cloud / device classes, %", "gap closed"),
    *("swing, points", "MB a device"),
)


def markdown(rows: Sequence[Row], conf: Conf, command: str) -> str:
    """Return a table a stage, best first, under the command and its setting.

    The gap is measured against the best central candidate.
    """
    good = [row for row in rows if "error" not in row]
    best_central = max((row["accuracy"] for row in good if row["kind"] == "central"), default=None)
    steps = conf.rounds.count * conf.rounds.local_steps
    parts = [
        f"Images that neither side holds, seed {conf.seed}, {steps} co steps a side or a third of "
        f"them; {machine(versions())}.",
    ]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        parts += [
            f"## {stage}",
            _table(_latest([r for r in rows if r["stage"] == stage]), best_central),
        ]
    return report(f"Search on {conf.name}", command, *parts)


def _latest(rows: Sequence[Row]) -> list[Row]:
    """Return each candidate once, with all rounds where it came so far, best first."""
    latest: dict[str, Row] = {}
    for row in rows:
        latest[row["name"]] = row
    return sorted(
        latest.values(), key=lambda r: (r["all_rounds"], r.get("accuracy", 0)), reverse=True
    )


def _table(rows: Sequence[Row], best_central: float | None) -> str:
    return table(HEADINGS, [_cells(row, best_central) for row in rows])


def _cells(row: Row, best_central: float | None) -> list[str]:
    if "error" in row:
        return [row["name"], f"failed: {row['error']}", *[""] * (len(HEADINGS) - 2)]
    sides = [cell(row[f"accuracy_{side}_classes"], ".0f", 100) for side in ("cloud", "device")]
    return [
        row["name"],
        "all" if row["all_rounds"] else "a third",
        cell(row["accuracy"], ".1f", 100),
        " / ".join(sides),
        _gap(row, best_central),
        cell(row["swing"], ".1f", 100),
        cell(row["bytes_a_device"] / 1e6, ".2f"),
    ]


def _gap(row: Row, best_central: float | None) -> str:
    if best_central is None or best_central == row["cloud_submodel"]:
        return "-"
    low = row["cloud_submodel"]
    return f"{(row['accuracy'] - low) / (best_central - low):.2f}"
