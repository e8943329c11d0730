"""The report of ``dccl scale``: ratios within one run first, then every measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dccl_flower.simulations.reports import cell, machine, report, table, versions
from dccl_flower.simulations.scale.cases import (
    BARE,
    DCCL,
    FLOWER,
    FRESH_COHORTS,
    PFL,
    TITLES,
    in_words,
)

Row = dict[str, Any]
BASE_POPULATION = 100
NEW_SHARE = "later.new_share"

# Heading, key of a row, factor, format.
COLUMNS = (
    ("turns/s", "turns_per_s", 1, ".1f"),
    ("CPU ms, first round", "first.cpu_s", 1e3, ".1f"),
    ("CPU ms, later", "later.cpu_s", 1e3, ".1f"),
    ("wall ms, later", "later.wall_s", 1e3, ".1f"),
    ("new devices, later, %", NEW_SHARE, 100, ".0f"),
    ("kB, first round", "first.bytes", 1e-3, ".0f"),
    ("kB, later", "later.bytes", 1e-3, ".0f"),
    ("server MB", "driver_mb", 1, ".0f"),
    ("worker MB", "worker_mb", 1, ".0f"),
    ("Ray MB", "ray_mb", 1, ".0f"),
    ("s to first turn", "seconds_to_first_turn", 1, ".1f"),
)


def measured(row: Row | None, key: str) -> float:
    """Return a number of a row, or NaN where it was not measured; dots lead further down."""
    value: Any = row
    for name in key.split("."):
        value = (value or {}).get(name)
    return math.nan if value is None else float(value)


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the comparisons that the rows allow: name, value, goal (at most that).

    All are of CPU-seconds a turn in the later rounds, but those of memory. ``None`` stands for
    what was not measured. The goals are those that this benchmark was written for.
    """
    return [
        {"name": name, "value": _known(_divide(value, by)), "goal": goal}
        for name, value, by, goal in [*_comparisons(rows), *_populations(rows)]
    ]


def same_steps(row: Row, rows: Sequence[Row]) -> float:
    """Return what the bare loop takes (CPU-seconds a turn) for the same steps and mimic passes."""
    plain = _turn(rows, system=BARE, control="none")
    with_mimic = _turn(rows, system=BARE, control="mimic")
    return plain + measured(row, "mimic_share") * (with_mimic - plain)


def markdown(rows: Sequence[Row], command: str) -> str:
    """Return the report: the command, ratios first, then every measurement."""
    found = versions()
    goals = [
        [each["name"], cell(each["value"], ".2f"), cell(each["goal"], ".2f")]
        for each in ratios(rows)
    ]
    headings = ["system", "devices", "cohort", "workers", "turn / bare loop"]
    return report(
        "Cost of a device's turn",
        command,
        f"{machine(found, found)}.",
        "A turn loads weights, takes its steps and hands the weights back. Ratios are of "
        "CPU-seconds a turn in all rounds but the first, those of Ray's and Flower's processes "
        "included, within one run on one machine.",
        table(["ratio", "measured", "goal, at most"], goals),
        table([*headings, *(heading for heading, *_ in COLUMNS)], [_cells(r, rows) for r in rows]),
        "First rounds include what starting the workers costs. A new device has its mimic sent "
        "and the mimic's logits computed; the bare loop is taken with as many of them. Server "
        "and Ray: all processes together; worker: the largest one.",
    )


def _comparisons(rows: Sequence[Row]) -> list[tuple[str, float, float, float]]:
    """Return name, value, what it is divided by, and goal, all at one cohort."""
    cohort = next((row["cohort"] for row in rows if row["system"] == BARE), 0)
    bare = _turn(rows, system=BARE, control="none")
    flower = _turn(rows, system=FLOWER, devices=cohort)
    ours = _turn(rows, system=DCCL, control="mimic", devices=cohort)
    without = _turn(rows, system=DCCL, control="none", devices=cohort)
    first = _turn(rows, system=DCCL, control="mimic", devices=FRESH_COHORTS * cohort)
    first_without = _turn(rows, system=DCCL, control="none", devices=FRESH_COHORTS * cohort)
    return [
        ("turn / bare loop of the same steps", ours, bare, 1.15),
        ("overhead / stock Flower's overhead", ours - bare, flower - bare, 1 / 3),
        ("turn / pfl-research's turn", ours, _turn(rows, system=PFL), 1.2),
        ("turn / turn without mimic", ours, without, 1.05),
        ("first turn of a device / the same without mimic", first, first_without, 1.45),
    ]


def _populations(rows: Sequence[Row]) -> list[tuple[str, float, float, float]]:
    """Compare populations with that of a hundred devices, with the workers that served both."""
    found = []
    ours = [row for row in rows if (row["system"], row["control"]) == (DCCL, "mimic")]
    for row in sorted(ours, key=lambda row: row["workers"]):
        base = _find(ours, devices=BASE_POPULATION, workers=row["workers"])
        if base is None or row["devices"] <= BASE_POPULATION:
            continue
        turn, base_turn = (measured(each, "later.cpu_s") for each in (row, base))
        steps = _divide(same_steps(row, rows), same_steps(base, rows))
        memory, base_memory = (measured(each, "worker_mb") for each in (row, base))
        place = f"at {row['devices']:,} devices / at {BASE_POPULATION}, {in_words(row['workers'])}"
        found += [
            (f"turn {place}", turn, base_turn, 1.2),
            (f"turn {place}, for the same steps", _divide(turn, base_turn), steps, 1.2),
            (f"worker memory {place}", memory, base_memory, 1.1),
        ]
    return found


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    turn = cell(_known(_divide(measured(row, "later.cpu_s"), same_steps(row, rows))), ".2f")
    cells = [
        TITLES[row["system"], row["control"]],
        *(cell(row["devices"], ","), cell(row["cohort"], ","), str(row["workers"])),
        turn if "later" in row else row.get("note") or "failed",
    ]
    for _, key, factor, style in COLUMNS:
        is_known = key != NEW_SHARE or row["system"] == DCCL
        cells.append(cell(_known(measured(row, key)) if is_known else None, style, factor))
    return cells


def _find(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """Return the first measured row with these values."""
    for row in rows:
        if "later" in row and all(row[key] == value for key, value in wanted.items()):
            return row
    return None


def _turn(rows: Sequence[Row], **wanted: Any) -> float:
    return measured(_find(rows, **wanted), "later.cpu_s")


def _divide(value: float, by: float) -> float:
    return value / by if by else math.nan


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
