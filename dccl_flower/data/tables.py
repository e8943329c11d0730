"""Tables of rows: csv with any separator and encoding, JSON lines, parquet; compressed or not."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json
from pyarrow import parquet

from dccl_flower.config import ConfError


def first_fields(file: Path, separator: str, encoding: str) -> list[str]:
    """Return the fields of a file's first row. Raises ConfError where there is but one."""
    try:
        with pa.input_stream(str(file)) as stream:
            line = io.TextIOWrapper(stream, encoding).readline().strip("\n\r\ufeff")
    except (UnicodeError, LookupError) as error:
        raise not_of_encoding(encoding, file) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(file, error) from error
    if not line:
        raise ConfError(f"data.path={file}: is empty")
    fields = next(csv.reader([line], delimiter=separator))
    if len(fields) == 1:
        shown = "tab" if separator == "\t" else separator
        raise ConfError(f"data.separator={shown}: the first row of {file.name} has 1 field")
    return fields


def read_csv(
    file: Path,
    columns: Sequence[str],
    texts: Sequence[str],
    separator: str = ",",
    encoding: str = "utf-8",
    names: Sequence[str] | None = None,
) -> pa.Table:
    """Return columns of a csv, of which ``texts`` are text; ``names`` are those of all its columns.

    Without names they stand in the first row. Raises ConfError for what is no such csv.
    """
    types = dict.fromkeys(texts, pa.string())
    try:
        return arrow_csv.read_csv(
            str(file),
            arrow_csv.ReadOptions(column_names=names, encoding=encoding),
            arrow_csv.ParseOptions(delimiter=separator),
            arrow_csv.ConvertOptions(include_columns=list(columns), column_types=types),
        )
    except KeyError as error:
        raise unreadable(file, error) from error
    except (UnicodeError, LookupError) as error:
        raise not_of_encoding(encoding, file) from error
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise not_of_encoding(encoding, file) from error
        raise unreadable(file, error) from error


def read_json_lines(file: Path, fields: dict[str, Any]) -> pa.Table:
    """Return fields of given types from a file with a JSON object a line; what lacks is null."""
    parse = arrow_json.ParseOptions(
        explicit_schema=pa.schema(fields.items()), unexpected_field_behavior="ignore"
    )
    try:
        return arrow_json.read_json(str(file), parse_options=parse)
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(file, error) from error


def read_parquet(file: Path, columns: Sequence[str]) -> pa.Table:
    """Return columns of a parquet file."""
    try:
        return parquet.read_table(str(file), columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(file, error) from error


def parquet_columns(file: Path) -> list[str]:
    """Return the names of a parquet file's columns."""
    try:
        return list(parquet.read_schema(str(file)).names)
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(file, error) from error


def whole(table: pa.Table, column: str, given: str) -> pa.ChunkedArray:
    """Return a column. Raises ConfError, which ``given`` opens, where it has empty places."""
    values = table[column]
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise ConfError(f"{given}: row {row} holds nothing")
    return values


def numbers(table: pa.Table, column: str, given: str) -> np.ndarray:
    """Return a column (N,) as float64. Raises ConfError where it holds something else."""
    values = whole(table, column, given)
    try:
        found = values.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfError(f"{given}: must hold numbers, not {values.type}") from error
    if not np.isfinite(found).all():
        raise ConfError(f"{given}: row {int(np.flatnonzero(~np.isfinite(found))[0])} is not finite")
    return found


def seconds(table: pa.Table, column: str, given: str) -> np.ndarray:
    """Return a column (N,) of moments or of numbers of seconds, as int64."""
    values = whole(table, column, given)
    if pa.types.is_temporal(values.type):
        try:
            return values.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfError(f"{given}: must hold moments, not {values.type}") from error
    return np.floor(numbers(table, column, given)).astype(np.int64)


def not_of_encoding(encoding: str, file: Path) -> ConfError:
    """Return the refusal of an encoding."""
    return ConfError(f"data.encoding={encoding}: {file.name} is not of this encoding")


def unreadable(file: Path, error: Exception) -> ConfError:
    """Return the refusal of a file, in one line."""
    cause = (str(error) or type(error).__name__).strip().splitlines()[0]
    return ConfError(f"data.path={file}: cannot be read ({cause[:200]})")
