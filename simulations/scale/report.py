"""The report of ``dccl scale``: ratios within one run first, then every measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dccl_flower.simulations.reports import cell, machine, report, table, versions
from dccl_flower.simulations.scale.cases import (
    BARE,
    DCCL,
    FLOWER,
    FRESH_COHORTS,
    PFL,
    system_title,
)

Row = dict[str, Any]
BASE_POPULATION = 100
# The goals that this benchmark was written for; a ratio should be at most that.
GOALS = {"bare": 1.15, "overhead": 1 / 3, "pfl": 1.2, "later": 1.05, "first": 1.45}
PER_TURN_GOAL, MEMORY_GOAL = 1.2, 1.1

# Heading, value of a row, factor, format.
COLUMNS: tuple[tuple[str, Callable[[Row], float | None], float, str], ...] = (
    ("turns/s", lambda row: row["turns_per_s"], 1, ".1f"),
    ("CPU ms, first round", lambda row: _of(row, "first", "cpu_s"), 1e3, ".1f"),
    ("CPU ms, later", lambda row: _of(row, "later", "cpu_s"), 1e3, ".1f"),
    ("wall ms, later", lambda row: _of(row, "later", "wall_s"), 1e3, ".1f"),
    ("new devices, later, %", lambda row: _new_share(row), 100, ".0f"),
    ("kB, first round", lambda row: _of(row, "first", "bytes"), 1e-3, ".0f"),
    ("kB, later", lambda row: _of(row, "later", "bytes"), 1e-3, ".0f"),
    ("server MB", lambda row: row.get("driver_mb"), 1, ".0f"),
    ("worker MB", lambda row: row.get("worker_mb"), 1, ".0f"),
    ("Ray MB", lambda row: row.get("ray_mb"), 1, ".0f"),
    ("s to first turn", lambda row: row["seconds_to_first_turn"], 1, ".1f"),
)


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the comparisons that the rows allow: what, value, goal (at most that).

    All are of CPU-seconds a turn in the later rounds, but those of memory. ``None`` stands for
    what was not measured.
    """
    return [*_comparisons(rows), *_populations(rows)]


def same_steps(row: Row, rows: Sequence[Row]) -> float | None:
    """Return what the bare loop takes (CPU-seconds a turn) for the same steps and mimic passes."""
    plain = _later(_find(rows, BARE, "none"))
    with_mimic = _later(_find(rows, BARE, "mimic"))
    share = row.get("mimic_share")
    if plain is None or with_mimic is None or share is None:
        return None
    return plain + float(share) * (with_mimic - plain)


def markdown(rows: Sequence[Row], command: str) -> str:
    """Return the report: the command, ratios first, then every measurement."""
    found = versions()
    return report(
        "Cost of a device's turn",
        command,
        f"{machine(found, found)}.",
        "A turn loads weights, takes its steps and hands the weights back. Ratios are of "
        "CPU-seconds a turn in all rounds but the first, those of Ray's and Flower's processes "
        "included, within one run on one machine.",
        _ratio_table(ratios(rows)),
        _table(rows),
        "First rounds include what starting the workers costs. A new device has its mimic sent "
        "and the mimic's logits computed; the bare loop is taken with as many of them. Server "
        "and Ray: all processes together; worker: the largest one.",
    )


def _comparisons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    bare = _later(_find(rows, BARE, "none"))
    reference = _reference_cohort(rows)
    fresh = None if reference is None else FRESH_COHORTS * reference
    ours, without, flower, pfl, ours_fresh, without_fresh = (
        _later(_find(rows, system, control, devices))
        for system, control, devices in (
            (DCCL, "mimic", reference),
            (DCCL, "none", reference),
            (FLOWER, "none", reference),
            (PFL, "none", reference),
            (DCCL, "mimic", fresh),
            (DCCL, "none", fresh),
        )
    )
    overhead = _divide(_minus(ours, bare), _minus(flower, bare))
    return [
        _ratio("turn / bare loop of the same steps", _divide(ours, bare), GOALS["bare"]),
        _ratio("overhead / stock Flower's overhead", overhead, GOALS["overhead"]),
        _ratio("turn / pfl-research's turn", _divide(ours, pfl), GOALS["pfl"]),
        _ratio("turn / turn without mimic", _divide(ours, without), GOALS["later"]),
        _ratio(
            "first turn of a device / the same without mimic",
            _divide(ours_fresh, without_fresh),
            GOALS["first"],
        ),
    ]


def _populations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compare populations with that of a hundred devices, with the workers that served both."""
    found = []
    for workers in sorted({row["workers"] for row in rows if row["system"] == DCCL}):
        base = _find(rows, DCCL, "mimic", BASE_POPULATION, workers)
        for row in rows:
            if (row["system"], row["control"], row["workers"]) != (DCCL, "mimic", workers):
                continue
            if base is None or row["devices"] <= BASE_POPULATION:
                continue
            turn = _divide(_later(row), _later(base))
            steps = _divide(same_steps(row, rows), same_steps(base, rows))
            memory = _divide(row.get("worker_mb"), base.get("worker_mb"))
            name = f"at {row['devices']:,} devices / at {BASE_POPULATION}, {_workers(workers)}"
            found += [
                _ratio(f"turn {name}", turn, PER_TURN_GOAL),
                _ratio(f"turn {name}, for the same steps", _divide(turn, steps), PER_TURN_GOAL),
                _ratio(f"worker memory {name}", memory, MEMORY_GOAL),
            ]
    return found


def _ratio_table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = ([each["name"], *(cell(each[k], ".2f") for k in ("value", "goal"))] for each in found)
    return table(["ratio", "measured", "goal, at most"], rows)


def _table(rows: Sequence[Row]) -> str:
    headings = ["system", "devices", "cohort", "workers", "turn / bare loop"]
    lines = []
    for row in rows:
        cells = [system_title(row["system"], row["control"])]
        cells += [cell(row["devices"], ","), cell(row["cohort"], ","), str(row["workers"])]
        if "later" in row:
            cells.append(cell(_divide(_later(row), same_steps(row, rows)), ".2f"))
            cells += [cell(value(row), style, factor) for _, value, factor, style in COLUMNS]
        else:
            cells += [row.get("note") or "failed", *("-" for _ in COLUMNS)]
        lines.append(cells)
    return table([*headings, *(heading for heading, *_ in COLUMNS)], lines)


def _find(
    rows: Sequence[Row],
    system: str,
    control: str,
    devices: int | None = None,
    workers: int | None = None,
) -> Row | None:
    """Return the first row of that kind; any population or number of workers where not given."""
    for row in rows:
        is_wanted = row["system"] == system and row["control"] == control and "later" in row
        if is_wanted and devices in (None, row["devices"]) and workers in (None, row["workers"]):
            return row
    return None


def _reference_cohort(rows: Sequence[Row]) -> int | None:
    row = _find(rows, BARE, "none")
    return None if row is None else int(row["cohort"])


def _later(row: Row | None) -> float | None:
    return None if row is None else _of(row, "later", "cpu_s")


def _of(row: Row, rounds: str, key: str) -> float | None:
    return None if row[rounds] is None else float(row[rounds][key])


def _new_share(row: Row) -> float | None:
    return _of(row, "later", "new_share") if row["system"] == DCCL else None


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _divide(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by


def _ratio(name: str, value: float | None, goal: float) -> dict[str, Any]:
    return {"name": name, "value": value, "goal": goal}


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
