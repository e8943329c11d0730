"""The reference of the configuration, as Markdown, made from the types of its sections."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from dccl_flower.config import Conf
from dccl_flower.image_config import ImageConf
from dccl_flower.method import find_method, method_names
from dccl_flower.recommendation_config import InteractionConf
from dccl_flower.simulations.key_table import Row, key_table, rows_of

COMMON = {
    "Every method": Conf,
    "Methods on images": ImageConf,
    "Methods on logs of users and items": InteractionConf,
}


def reference() -> str:
    """Return the keys of every method with their defaults, a chapter for what several share."""
    methods = {f"`method.name={name}`": find_method(name).conf for name in method_names()}
    titles, chapters = dict[type[Conf], str](), []
    for title, kind in sorted((COMMON | methods).items(), key=lambda item: len(item[1].__mro__)):
        known = [base for base in kind.__mro__ if base in titles]
        shared = {row for base in known for row in rows_of(base())}
        beside = f"Beside the keys of *{titles[known[0]]}*." if known else ""
        chapters += [f"## {title}", beside, *_sections(kind(), shared)]
        titles.setdefault(kind, title)
    return "\n\n".join(filter(None, chapters)) + "\n"


def _sections(conf: Any, shared: set[Row], prefix: str = "") -> Iterator[str]:
    rows = [row for row in rows_of(conf, prefix) if _section(row) == prefix and row not in shared]
    if rows:
        yield f"### `{prefix.rstrip('.')}`" if prefix else "### Without a section"
        yield inspect.getdoc(type(conf)) or ""
        yield key_table(rows, "default")
    for each in fields(conf):
        if is_dataclass(inner := getattr(conf, each.name)):
            yield from _sections(inner, shared, f"{prefix}{each.name}.")


def _section(row: Row) -> str:
    section, dot, _ = row[0].rpartition(".")
    return section + dot
