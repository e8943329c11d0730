"""Labels of any kind as numbers, and the names that the data have for the classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dccl_flower.config import ConfError

if TYPE_CHECKING:
    from datasets import Dataset

RANGE = re.compile(r"(\d+)-(\d+)")


def class_names(splits: Mapping[str, Dataset], column: str) -> list[str]:
    """Return the names of the classes of a column in order; none where labels are numbers.

    Labels of text or of truth are sorted, so that the order does not depend on the rows'.
    """
    from datasets import ClassLabel

    feature = splits["train"].features[column]
    feature = getattr(feature, "feature", feature)  # of lists of one label
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    found = [column_of(rows, column) for rows in splits.values()]
    if any(_is_named(values) for values in found):
        return sorted({str(value) for values in found for value in values.ravel().tolist()})
    return []


def labels_of(rows: Dataset, column: str, names: Sequence[str]) -> np.ndarray:
    """Return the labels (N,) int64 of a column of integers, texts or truths, or lists of one.

    Raises ConfError where there is not one label for each row.
    """
    labels = column_of(rows, column)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    key = f"data.label_column={column}"
    if labels.ndim != 1:
        raise ConfError(f"{key}: must hold one label for each image, not {labels.shape[1:]}")
    if _is_named(labels):
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers[str(label)] for label in labels.tolist()], np.int64)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ConfError(f"{key}: labels must be integers from 0, texts, or true and false")
    return labels.astype(np.int64)


def column_of(rows: Dataset, column: str) -> np.ndarray:
    """Return a column as an array; rows of unequal length are as good as None."""
    values = rows[column][:]
    try:
        return np.asarray(values)
    except ValueError:
        return np.asarray([None])


def class_numbers(key: str, given: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Return the classes that are given by name or number, or many as ``10-19``.

    Raises ConfError, which names the key, for one that there is not.
    """
    numbers = {str(number): number for number in range(len(names))}
    numbers |= {name: number for number, name in enumerate(names)}
    wanted: list[int | str] = []
    for each in given:
        ends = RANGE.fullmatch(str(each)) if str(each) not in numbers else None
        many = range(int(ends[1]), int(ends[2]) + 1) if ends else ()
        wanted += many or [each]
    for each in wanted:
        if str(each) not in numbers:
            shown = ", ".join(dict.fromkeys(numbers))
            raise ConfError(f"{key}={list(given)}: class {each} is not among {shown}")
    return [numbers[str(each)] for each in wanted]


def _is_named(values: np.ndarray) -> bool:
    return values.dtype.kind in "US" or values.dtype.kind == "b"
