"""Logs as memory-maps: read or made up once, shared by all processes of a machine."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from dccl_flower.cache import cache_entry
from dccl_flower.data.arrange import arrange
from dccl_flower.data.interactions import Interactions
from dccl_flower.data.log_readers import log_files, read_amazon, read_table
from dccl_flower.data.movielens import movielens_files, read_movielens
from dccl_flower.data.world import made_up_world
from dccl_flower.files import content_key, write_array
from dccl_flower.interaction_config import LogDataConf

FORMAT = 1  # to be raised when the same data become something else
MAPPED = ("users", "items", "labels", "times", "parts")
READERS = {"amazon": read_amazon, "movielens": read_movielens, "table": read_table}


def open_interactions(conf: LogDataConf, seed: int) -> Interactions:
    """Memory-map a log, reading it or making it up first where no process has done so yet.

    The seed decides a made-up world, and which negatives are drawn. Raises ConfError for what
    cannot be read or leaves nothing.
    """
    folder = cache_entry(_log_key(conf, seed), lambda target: _save(_make(conf, seed), target))
    arrays = {file.stem: _load(file) for file in folder.glob("*.npy")}
    return Interactions(**arrays)


def _log_key(conf: LogDataConf, seed: int) -> str:
    """Hash what decides the rows; local files count by name, size and time."""
    facts: list[Any] = [FORMAT, conf.name, asdict(conf.split)]
    if conf.name == "world":
        facts += [asdict(conf.world), seed]
    else:
        facts += [asdict(conf) | {"history": None, "world": None}, conf.implicit and seed]
        files = movielens_files(conf)[1] if conf.name == "movielens" else log_files(conf)
        stats = [(str(file.resolve()), file.stat()) for file in files]
        facts += [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return f"log-{content_key(*facts)}"


def _make(conf: LogDataConf, seed: int) -> Interactions:
    if conf.name == "world":
        return made_up_world(conf.world, conf.split, seed)
    return arrange(READERS[conf.name](conf), conf, seed)


def _save(log: Interactions, folder: Path) -> None:
    for each in fields(log):
        if (array := getattr(log, each.name)) is not None:
            write_array(folder / f"{each.name}.npy", array)


def _load(file: Path) -> np.ndarray:
    """Map the rows; the small tables are read, for one without columns cannot be mapped."""
    return np.load(file, mmap_mode="r" if file.stem in MAPPED else None)
