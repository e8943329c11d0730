"""Public logs as their users unpack them, and any table of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from dccl_flower.config import ConfError
from dccl_flower.data import tables
from dccl_flower.data.arrange import Found
from dccl_flower.interaction_config import LogDataConf

CSV, JSON = (".csv", ".csv.gz", ".tsv", ".txt"), (".json", ".json.gz", ".jsonl", ".jsonl.gz")
SUFFIXES = {"amazon": (*CSV, *JSON), "table": (*CSV, ".parquet")}
AMAZON_CSV = ("user", "item", "rating", "timestamp")
AMAZON_OLD = ("reviewerID", "asin", "overall", "unixReviewTime")
AMAZON_NEW = ("user_id", "parent_asin", "rating", "timestamp")
MILLISECONDS = 10**11  # numbers of seconds beyond this are milliseconds, as newer dumps have them


def log_files(conf: LogDataConf) -> list[Path]:
    """Return the files of an Amazon log or a table: that of the path, or those of its folder.

    Raises ConfError where there is none.
    """
    path = given_path(conf)
    if path.is_file():
        return [path]
    suffixes = SUFFIXES[conf.name]
    files = [file for file in sorted(path.glob("*")) if file.name.endswith(suffixes)]
    if not path.is_dir():
        raise ConfError(f"data.path={conf.path}: no such file or folder")
    if not files:
        raise ConfError(f"data.path={conf.path}: holds no file that ends in {', '.join(suffixes)}")
    return files


def given_path(conf: LogDataConf) -> Path:
    """Return where the data are. Raises ConfError where nothing is given."""
    if conf.path is None:
        raise ConfError(f"data.name={conf.name}: needs data.path")
    return Path(conf.path).expanduser()


def read_table(conf: LogDataConf) -> Found:
    """Read csv or parquet with named columns; ratings are not needed where rows are implicit."""
    columns = {
        "user": conf.user_column,
        "item": conf.item_column,
        "label": conf.label_column,
        "time": conf.time_column,
    }
    if conf.implicit:
        del columns["label"]
    found = [_named_columns(file, columns, conf) for file in log_files(conf)]
    table = _joined(found, conf)
    given = {name: f"data.{name}_column={column}" for name, column in columns.items()}
    return Found(
        f"data.path={conf.path}",
        tables.whole(table, "user", given["user"]),
        tables.whole(table, "item", given["item"]),
        None if conf.implicit else tables.numbers(table, "label", given["label"]),
        tables.seconds(table, "time", given["time"]),
    )


def read_amazon(conf: LogDataConf) -> Found:
    """Read reviews: csv without a header, or JSON lines, of the dumps of 2014 to 2023.

    A csv without a header holds user, item, rating, time.
    """
    table = _joined([_amazon_rows(file, conf) for file in log_files(conf)], conf)
    where = f"data.path={conf.path}"
    times = tables.seconds(table, "time", f"{where}: time")
    return Found(
        where,
        tables.whole(table, "user", f"{where}: user"),
        tables.whole(table, "item", f"{where}: item"),
        tables.numbers(table, "label", f"{where}: rating"),
        np.where(times > MILLISECONDS, times // 1000, times),
    )


def _named_columns(file: Path, columns: dict[str, str], conf: LogDataConf) -> pa.Table:
    separator = "\t" if conf.separator == "tab" else conf.separator
    if len(separator) != 1:
        raise ConfError(f"data.separator={separator}: must be one character, or tab")
    is_parquet = file.suffix == ".parquet"
    if is_parquet:
        there = tables.parquet_columns(file)
    else:
        there = tables.first_fields(file, separator, conf.encoding)
    for name, column in columns.items():
        if column not in there:
            listed = ", ".join(there)
            raise ConfError(f"data.{name}_column={column}: {file.name} has columns {listed}")
    chosen, texts = list(columns.values()), [columns["user"], columns["item"]]
    if is_parquet:
        table = tables.read_parquet(file, chosen)
    else:
        table = tables.read_csv(file, chosen, texts, separator, conf.encoding)
    return table.select(chosen).rename_columns(list(columns))


def _amazon_rows(file: Path, conf: LogDataConf) -> pa.Table:
    if file.name.endswith(JSON):
        return _amazon_objects(file)
    first = tables.first_fields(file, ",", conf.encoding)
    has_header = set(AMAZON_NEW) <= set(first)
    columns = AMAZON_NEW if has_header else AMAZON_CSV
    if not has_header and len(first) != len(AMAZON_CSV):
        raise ConfError(f"data.path={file}: rows must be user,item,rating,timestamp")
    names = None if has_header else AMAZON_CSV
    table = tables.read_csv(file, columns, columns[:2], ",", conf.encoding, names)
    return table.rename_columns(["user", "item", "label", "time"])


def _amazon_objects(file: Path) -> pa.Table:
    kinds: tuple[Any, ...] = (pa.string(), pa.string(), pa.float64(), pa.int64())
    fields = dict(zip(AMAZON_OLD + AMAZON_NEW, kinds + kinds, strict=True))
    table = tables.read_json_lines(file, fields)
    is_new = table["user_id"].null_count < table.num_rows
    chosen = table.select(AMAZON_NEW if is_new else AMAZON_OLD)
    return chosen.rename_columns(["user", "item", "label", "time"])


def _joined(found: list[pa.Table], conf: LogDataConf) -> pa.Table:
    try:
        return pa.concat_tables(found, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise ConfError(f"data.path={conf.path}: files hold columns of several types") from error
