"""``dccl summary``: a table over runs that differ by their seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import conf_names, load_conf
from dccl_flower.method import find_method
from dccl_flower.simulations.reports import spread, spread_cell, table

Results = dict[str, Any]
# What changes where or how a run is computed, but not what it is an experiment of.
PLACE_KEYS = ("seed", "name", "data.path", "devices.store", "runtime.")


def _cloud(results: Results) -> float:
    return float(results["references"]["cloud_submodel"]["accuracy"])


# A method without a cloud submodel, and a task without classes apart, leave columns empty.
COLUMNS: dict[str, tuple[Callable[[Results], float], str]] = {
    "cloud submodel, %": (lambda r: 100 * _cloud(r), ".1f"),
    "served, %": (lambda r: 100 * r["final"]["accuracy"], ".1f"),
    "gain, points": (lambda r: 100 * (r["final"]["accuracy"] - _cloud(r)), "+.1f"),
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
    rows: dict[str, dict[int, Results]] = {}
    for folder in folders:
        results = read_results(folder)
        runs = rows.setdefault(_label(results["conf"]), {})
        if results["seed"] in runs:
            raise ConfError(f"{folder}: seed {results['seed']} of this experiment is given twice")
        runs[results["seed"]] = results
    cells = (
        [f"`{label}`", ", ".join(map(str, sorted(runs))), *_cells(runs.values())]
        for label, runs in rows.items()
    )
    return table(["run", "seeds", *COLUMNS], cells, words=2)


def read_results(folder: Path) -> Results:
    """Return what a finished run has written. Raises ConfError for a folder without it."""
    try:
        results: Results = json.loads((folder / "results.json").read_text())
        # Each of these raises where something is missing or of another form.
        results["seed"], results["conf"]["name"]
        for key in ("conf", "final", "wire", "seconds"):
            dict(results[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfError(f"{folder}: holds no results.json of a finished run") from error
    return results


def _label(conf: dict[str, Any]) -> str:
    """Return the configuration's name and what was set differently from the one of that name."""
    name = conf["name"]
    usual = dict(_flat(asdict(load_conf(name) if name in conf_names() else _defaults(conf))))
    changed = [
        f"{key}={value}"
        for key, value in _flat(conf)
        if usual.get(key) != value and not key.startswith(PLACE_KEYS)
    ]
    return " ".join([name, *changed])


def _defaults(conf: dict[str, Any]) -> Conf:
    kind: type[Conf] = find_method(conf["method"]["name"]).conf
    return kind()


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cells(runs: Collection[Results]) -> Iterator[str]:
    for value, style in COLUMNS.values():
        try:
            yield spread_cell(spread(map(value, runs)), style)
        except KeyError:
            yield "-"
