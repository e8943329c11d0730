"""``dccl summary``: a table over runs that differ by their seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import conf_names, load_conf
from dccl_flower.simulations.reports import spread, spread_cell, table

# What changes where or how a run is computed, but not what it is an experiment of.
PLACE_KEYS = ("seed", "name", "data.path", "devices.store", "runtime.")
Value = Callable[[dict[str, Any]], float]


def _cloud(results: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = results["references"]["cloud_submodel"]
    return scores


# A method without a cloud submodel, and a task without classes apart, leave columns empty.
COLUMNS: dict[str, tuple[Value, str]] = {
    "cloud submodel, %": (lambda r: 100 * _cloud(r)["accuracy"], ".1f"),
    "served, %": (lambda r: 100 * r["final"]["accuracy"], ".1f"),
    "gain, points": (
        lambda r: 100 * (r["final"]["accuracy"] - _cloud(r)["accuracy"]),
        "+.1f",
    ),
    "cloud classes, %": (lambda r: 100 * r["final"]["accuracy_cloud_classes"], ".1f"),
    "device classes, %": (lambda r: 100 * r["final"]["accuracy_device_classes"], ".1f"),
    "plug-in gap, points": (lambda r: 100 * r["final"]["plug_in_gap"], "+.1f"),
    "MB a device": (lambda r: sum(r["wire"].values()) / 1e6 / r["conf"]["devices"]["count"], ".2f"),
    "seconds": (lambda r: r["seconds"]["total"], ".0f"),
}


def summarise(folders: Iterable[Path]) -> str:
    """Return a Markdown table, a row for the runs that differ by their seed alone.

    Values are means over seeds, with the sample standard deviation where there are several.
    Raises ConfError for a folder without results and for one seed given twice.
    """
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for folder in folders:
        results = _read(folder)
        runs = rows.setdefault(_label(results["conf"]), {})
        if results["seed"] in runs:
            raise ConfError(f"{folder}: seed {results['seed']} of this experiment is given twice")
        runs[results["seed"]] = results
    cells = (
        [f"`{label}`", ", ".join(map(str, sorted(runs))), *_cells(runs.values())]
        for label, runs in rows.items()
    )
    return table(["run", "seeds", *COLUMNS], cells, words=2)


def _read(folder: Path) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads((folder / "results.json").read_text())
        for key in ("conf", "seed", "final", "wire", "seconds"):
            results[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfError(f"{folder}: holds no results.json of a finished run") from error
    return results


def _label(conf: dict[str, Any]) -> str:
    """Return the configuration's name and what was set differently from the one of that name."""
    name = conf["name"]
    usual = _flat(asdict(load_conf(name) if name in conf_names() else Conf()))
    changed = [
        f"{key}={value}"
        for key, value in _flat(conf).items()
        if usual.get(key) != value and not key.startswith(PLACE_KEYS)
    ]
    return " ".join([name, *changed])


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _cells(runs: Collection[dict[str, Any]]) -> list[str]:
    return [_cell(runs, value, style) for value, style in COLUMNS.values()]


def _cell(runs: Collection[dict[str, Any]], value: Value, style: str) -> str:
    try:
        return spread_cell(spread(map(value, runs)), style)
    except KeyError:
        return "-"
