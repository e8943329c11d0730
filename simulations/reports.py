"""Pieces of the Markdown reports: head, tables, means over seeds, and what has measured."""

from __future__ import annotations

import math
import os
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dccl_flower.config_loading import load_conf

PACKAGES = ("dccl-flower", "flwr", "ray", "torch", "torchvision", "timm", "torch-pruning")


def report(title: str, command: str, *parts: str) -> str:
    """Return a document: its title, the command that it comes from, and its parts."""
    return "\n\n".join([f"# {title}", f"```bash\n{command}\n```", *parts]) + "\n"


def command_line(
    verb: str,
    conf_name: str,
    overrides: Sequence[str],
    flags: Sequence[str] = (),
    swept: Sequence[str] = (),
) -> str:
    """Return the command of a comparison, without this machine's paths in the overrides."""
    data_set = Path(load_conf(conf_name, overrides).data.name).name
    hidden = {"data.path": f"data.path=PATH/TO/{data_set}", "devices.store": ""}
    shown = dict.fromkeys(hidden.get(each.split("=")[0], each) for each in overrides)
    return shlex.join(["dccl", verb, conf_name, *swept, *filter(None, shown), *flags])


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return a table; the first ``words`` columns are words, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(headings) - words)
    return "\n".join([_line(headings), f"|{'|'.join(rule)}|", *map(_line, rows)])


def _line(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {text} |" if text else " |" for text in cells)


def heading(score: str) -> str:
    """Return a score's name as tables have it."""
    return f"{score.replace('_', ' ')}, %"


def spread(values: Iterable[float | None]) -> dict[str, Any]:
    """Return mean and sample standard deviation of what is known, None where that is too little."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return {
        "mean": mean(known) if known else None,
        "std": stdev(known) if len(known) > 1 else None,
    }


def spread_cell(found: Mapping[str, Any], style: str, factor: float = 1) -> str:
    """Return a mean, with its deviation where there is one; the style's sign is the mean's."""
    text = cell(found["mean"], style, factor)
    deviation = found["std"]
    return text if deviation is None else f"{text} ± {factor * deviation:{style.lstrip('+')}}"


def cell(value: float | None, style: str, factor: float = 1) -> str:
    """Return a number times ``factor``, and a dash for none."""
    return "-" if value is None else f"{factor * value:{style}}"


def gap_closed(score: float | None, low: float | None, high: float | None) -> float | None:
    """Return which share of the way from low to high a score lies at, None where one is missing."""
    if score is None or low is None or high is None or low == high:
        return None
    return (score - low) / (high - low)


def of_seeds(seeds: Sequence[int]) -> str:
    """Say what the numbers over some seeds are."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"mean ± standard deviation of seeds {', '.join(map(str, seeds))}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine(found: Mapping[str, str], names: Iterable[str] = ("torch", "flwr")) -> str:
    """Return this machine's cores and, of the versions found, those of some packages."""
    named = [f"{name} {found[name]}" for name in names if name in found]
    return ", ".join([f"{os.cpu_count()} cores", *named])
