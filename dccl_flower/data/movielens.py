"""MovieLens 100K, 1M and 20M (Harper & Konstan 2015) as they are unpacked; told by their files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from dccl_flower.config import ConfError
from dccl_flower.data import tables
from dccl_flower.data.arrange import Codes, Found
from dccl_flower.data.log_readers import given_path
from dccl_flower.interaction_config import LogDataConf

VERSIONS = {  # ratings first
    "100K": ("u.data", "u.user", "u.item"),
    "1M": ("ratings.dat", "users.dat", "movies.dat"),
    "20M": ("ratings.csv", "movies.csv"),
}
AGES = (18, 25, 35, 45, 50, 56)  # at which an age group of MovieLens 1M begins
LATIN = "latin-1"


def movielens_files(conf: LogDataConf) -> tuple[str, list[Path]]:
    """Return which MovieLens a folder holds, and its files. Raises ConfError if it holds none."""
    folder = given_path(conf)
    if not folder.is_dir():
        raise ConfError(f"data.path={conf.path}: no such folder")
    for version, names in VERSIONS.items():
        if all((folder / name).is_file() for name in names):
            return version, [folder / name for name in names]
    looked_for = "; ".join(", ".join(names) for names in VERSIONS.values())
    raise ConfError(f"data.path={conf.path}: holds none of these together: {looked_for}")


def read_movielens(conf: LogDataConf) -> Found:
    """Read ratings, and as codes age group, gender and occupation, and a movie's first genre.

    20M knows nothing of its users.
    """
    version, (ratings, *others) = movielens_files(conf)
    readers: dict[str, Callable[..., tuple[pa.Table, Codes, Codes]]]
    readers = {"100K": _read_100k, "1M": _read_1m, "20M": _read_20m}
    try:
        columns, profiles, features = readers[version](ratings, *others)
    except ConfError:
        raise
    except (KeyError, ValueError, OSError) as error:
        raise tables.unreadable(ratings.parent, error) from error
    where, names = f"data.path={ratings}", columns.column_names
    users, items, stars, times = (tables.numbers(columns, each, where) for each in names)
    users, items, times = (column.astype(np.int64) for column in (users, items, times))
    return Found(where, users, items, stars, times, profiles, features)


def _read_100k(ratings: Path, people: Path, movies: Path) -> tuple[pa.Table, Codes, Codes]:
    names = ("user", "item", "rating", "time")
    columns = tables.read_csv(ratings, names, (), "\t", LATIN, names)
    rows = _fields(people, "|", 5)
    works = _codes(fields[3] for fields in rows)
    profiles = {}
    for user, age, gender, work, *_ in rows:
        profiles[int(user)] = (*_age_gender(age, gender), works[work])
    genres = {}
    for movie, *fields in _fields(movies, "|", 6):
        flags = fields[4:]
        genres[int(movie)] = (flags.index("1") + 1 if "1" in flags else 0,)
    return columns, profiles, genres


def _read_1m(ratings: Path, people: Path, movies: Path) -> tuple[pa.Table, Codes, Codes]:
    # pyarrow splits at one character, so there are empty columns between.
    names = ("user", "_1", "item", "_2", "rating", "_3", "time")
    columns = tables.read_csv(ratings, names[::2], (), ":", LATIN, names)
    profiles = {}
    for user, gender, age, work, *_ in _fields(people, "::", 5):
        profiles[int(user)] = (*_age_gender(age, gender), int(work) + 1)
    rows = _fields(movies, "::", 3)
    return columns, profiles, _first_genres((fields[0], fields[-1]) for fields in rows)


def _read_20m(ratings: Path, movies: Path) -> tuple[pa.Table, Codes, Codes]:
    names = ("userId", "movieId", "rating", "timestamp")
    columns = tables.read_csv(ratings, names, ())
    with movies.open(encoding="utf-8", newline="") as file:
        rows = [(row["movieId"], row["genres"]) for row in csv.DictReader(file, restval="")]
    return columns, {}, _first_genres(rows)


def _fields(file: Path, separator: str, fewest: int) -> list[list[str]]:
    """Return the fields of each row of a small file."""
    rows = [line.split(separator) for line in file.read_text(LATIN).split("\n") if line.strip()]
    for number, fields in enumerate(rows):
        if len(fields) < fewest:
            has = f"row {number} has {len(fields)} of {fewest} fields"
            raise ConfError(f"data.path={file}: {has} between {separator!r}")
    return rows


def _age_gender(age: str, gender: str) -> tuple[int, int]:
    return int(np.searchsorted(AGES, int(age), side="right")) + 1, "FM".index(gender) + 1


def _first_genres(rows: Iterable[tuple[str, str]]) -> Codes:
    first = {int(movie): genres.strip().split("|")[0] for movie, genres in rows}
    codes = _codes(first.values())
    return {movie: (codes[genre],) for movie, genre in first.items()}


def _codes(names: Iterable[str]) -> dict[str, int]:
    return {name: code for code, name in enumerate(sorted(set(names)), start=1)}
