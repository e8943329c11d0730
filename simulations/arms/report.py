"""The comparison of the arms: means and deviations over seeds, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from dccl_flower.simulations.arms.arms import ARMS, CENTRAL_M, CLOUD_SUBMODEL, HEADLINES
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
MILESTONES = (0.5, 0.8, 0.9)
SWING_ROUNDS = 10

# Heading, key of a row, factor, format.
COLUMNS = (
    ("accuracy, %", "accuracy", 100, ".1f"),
    ("cloud classes, %", "accuracy_cloud_classes", 100, ".1f"),
    ("device classes, %", "accuracy_device_classes", 100, ".1f"),
    ("gap closed", "gap_closed", 1, ".2f"),
    ("plug-in gap, points", "plug_in_gap", 100, "+.1f"),
    ("swing, points", "swing", 100, ".1f"),
    ("MB a device", "bytes_a_device", 1e-6, ".2f"),
    ("seconds", "seconds", 1, ".0f"),
)
FIDELITY_COLUMNS = (
    ("logit MSE", "logit_mse", 1, ".2f"),
    ("top-1 agreement, %", "agreement", 100, ".1f"),
    ("KL, nats", "kl", 1, ".2f"),
)


def summarise_arms(results: Results) -> dict[str, Any]:
    """Return for every arm each value by seed, its mean, and its sample standard deviation.

    ``gap_closed`` is (arm - cloud submodel) / (Central-M - cloud submodel) of the same seed, null
    where one of them is missing. ``swing`` is the largest change of accuracy from one round to the
    next among the last ten.
    """
    names = [name for name in ARMS if any(arm == name for arm, _ in results)]
    return {name: _summarise_arm(name, results) for name in names}


def gap_closed(accuracy: float, seed: int, results: Results) -> float | None:
    """Return which share of the way from the cloud submodel to Central-M an accuracy lies at."""
    low, high = (results.get((name, seed)) for name in (CLOUD_SUBMODEL, CENTRAL_M))
    if low is None or high is None or high["accuracy"] == low["accuracy"]:
        return None
    return float((accuracy - low["accuracy"]) / (high["accuracy"] - low["accuracy"]))


def gap_curves(results: Results) -> dict[str, list[tuple[float, float, float]]]:
    """Return (bytes a device, mean gap closed, deviation) by round for the headline arms."""
    curves = {}
    for name in HEADLINES:
        by_seed = []
        for (arm, seed), result in results.items():
            gaps = [gap_closed(r["accuracy"], seed, results) for r in result.get("rounds", [])]
            if arm == name and gaps and None not in gaps:
                sent = [each["bytes_a_device"] for each in result["rounds"]]
                by_seed.append(list(zip(sent, gaps, strict=True)))
        points = []
        for each in zip(*by_seed, strict=False):
            values = [gap for _, gap in each]
            deviation = stdev(values) if len(values) > 1 else 0.0
            points.append((mean(sent for sent, _ in each), mean(values), deviation))
        if points:
            curves[name] = points
    return curves


def largest_swing(accuracies: Sequence[float]) -> float | None:
    """Return the largest change from one of the last rounds to the next, None without rounds."""
    late = accuracies[-SWING_ROUNDS:]
    return max((abs(b - a) for a, b in pairwise(late)), default=None)


def markdown(summary: Mapping[str, Any], results: Results, title: str, command: str) -> str:
    """Return the tables: all arms, gap closed against bytes, and the mimic's fidelity."""
    seeds = sorted({seed for _, seed in results})
    found = next(iter(results.values())).get("versions", {})
    parts = [f"Test set, {of_seeds(seeds)}; {machine(found)}.", _arms_table(summary)]
    if curves := gap_curves(results):
        parts += ["MB a device until the mean gap closed reaches", _bytes_table(curves)]
    if fidelity := _fidelity_table(results):
        parts += [
            "Mimic against cloud submodel on the test images of each side's classes",
            fidelity,
        ]
    return report(title, command, *parts)


def _summarise_arm(name: str, results: Results) -> dict[str, Any]:
    rows = {}
    for (arm, seed), result in results.items():
        if arm == name:
            swing = largest_swing([r["accuracy"] for r in result.get("rounds", [])])
            gap = gap_closed(result["accuracy"], seed, results)
            rows[seed] = {**result, "gap_closed": gap, "swing": swing}
    summary: dict[str, Any] = {"title": ARMS[name].title}
    for _, key, _, _ in COLUMNS:
        values = {seed: row.get(key) for seed, row in sorted(rows.items())}
        summary[key] = {"seeds": values, **spread(values.values())}
    return summary


def _arms_table(summary: Mapping[str, Any]) -> str:
    rows = (
        [row["title"], *(spread_cell(row[key], style, factor) for _, key, factor, style in COLUMNS)]
        for row in summary.values()
    )
    return table(["arm", *(heading for heading, *_ in COLUMNS)], rows)


def _bytes_table(curves: Mapping[str, list[tuple[float, float, float]]]) -> str:
    rows = []
    for name, points in curves.items():
        sent, gap, _ = points[-1]
        reached = [next((s for s, g, _ in points if g >= least), None) for least in MILESTONES]
        megabytes = (None if each is None else each / 1e6 for each in (*reached, sent))
        cells = (cell(value, ".2f") for value in (*megabytes, gap))
        rows.append([ARMS[name].title, *cells])
    return table(["arm", *map(str, MILESTONES), "in all", "gap closed"], rows)


def _fidelity_table(results: Results) -> str:
    found = [r["mimic_fidelity"] for (arm, _), r in results.items() if arm == "mimic"]
    if not found:
        return ""
    rows = []
    for side in ("cloud", "device"):
        fidelities = [each[f"{side}_classes"] for each in found]
        cells = (
            spread_cell(spread(each[key] for each in fidelities), style, factor)
            for _, key, factor, style in FIDELITY_COLUMNS
        )
        rows.append([side, *cells])
    return table(["classes", *(heading for heading, *_ in FIDELITY_COLUMNS)], rows)
