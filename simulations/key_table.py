"""``dccl confs`` and ``dccl keys``: what configurations and what keys there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from importlib import resources
from typing import Any, Literal, get_args, get_origin

from dccl_flower.config_loading import conf_names, load_conf
from dccl_flower.simulations.reports import table
from dccl_flower.typed_yaml import Bound, hints

Row = tuple[str, str, str]
NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}


def conf_lines() -> Iterator[tuple[str, str]]:
    """Return each configuration that comes with the package, and what its head says it is."""
    folder = resources.files("dccl_flower.conf")
    for name in conf_names():
        lines = folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        head = [line.lstrip("# ") for line in lines if line.startswith("#")]
        text = " ".join(line for line in head if not line.startswith("dccl "))
        yield name, text.partition(". ")[0].rstrip(".")


def key_rows(conf_name: str, part: str = "") -> list[Row]:
    """Return key, value and what is allowed of all keys of a configuration with ``part`` in them.

    Raises ConfError for a configuration that there is not.
    """
    conf = load_conf(conf_name)
    return [row for row in rows_of(conf) if part.lower() in row[0].lower()]


def key_table(rows: Iterable[Row], of_values: str = "value") -> str:
    """Return rows of keys as a Markdown table; ``of_values`` heads the column of values."""
    cells = [[f"`{key}`", f"`{value}`", allowed.replace("|", "or")] for key, value, allowed in rows]
    return table(("key", of_values, "allowed"), cells, words=3)


def rows_of(section: Any, prefix: str = "") -> Iterator[Row]:
    """Return key, value and what is allowed of all keys of a section and the sections in it."""
    kind: Any = type(section)
    types = hints(kind)
    for each in fields(section):
        value, key = getattr(section, each.name), f"{prefix}{each.name}"
        if is_dataclass(value):
            yield from rows_of(value, f"{key}.")
            continue
        limits = each.metadata.get("bound", Bound())
        yield key, _shown(value), _allowed(types[each.name], limits, value)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else '""'


def _allowed(hint: Any, limits: Bound, value: Any) -> str:
    words = _kind(hint)
    told = limits.allowed(value if isinstance(value, float) else 0)
    told = told.removeprefix("must be").removeprefix("must lie").strip()
    return f"{words}, {told}" if told else words


def _kind(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"mapping to {_kind(inner[1])}"
    if inner:
        return " or ".join(_kind(each) for each in inner)
    return NAMES[hint]
