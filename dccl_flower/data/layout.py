"""Which parquet files of a folder are training data and which are test data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dccl_flower.config import ConfError

SPLITS = ("train", "test")
WORDS = {split + end: split for split in SPLITS for end in ("", "ing", "set")}


def parquet_files(path: str) -> dict[str, list[str]]:
    """Return the sorted files of each split, each once: those named after it, else in its folder.

    A name is read by words, of which the first that names a split counts: ``constrained`` is no
    training file, ``test_train`` a test file. Of nested folders the innermost counts, as in the
    hub's ``default/train/0000.parquet``. Hidden files are left out. Raises ConfError where there
    is no such folder, or a split without files.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfError(f"data.path={path}: no such folder")
    by_name: dict[str, list[str]] = {split: [] for split in SPLITS}
    by_folder: dict[str, list[str]] = {split: [] for split in SPLITS}
    folder = folder.resolve()
    for file in sorted(folder.rglob("*.parquet")):
        parts = file.relative_to(folder).parts
        if not file.is_file() or any(part.startswith(".") for part in parts):
            continue
        if split := _split_named(parts[-1:]):
            by_name[split].append(str(file))
        elif split := _split_named(parts[-2::-1]):
            by_folder[split].append(str(file))
    files = {split: by_name[split] or by_folder[split] for split in SPLITS}
    for split in SPLITS:
        if not files[split]:
            raise ConfError(f"data.path={path}: holds no {split}*.parquet and no {split}/*.parquet")
    return files


def _split_named(names: Sequence[str]) -> str | None:
    words = [word for name in names for word in re.findall("[a-z]+", name.lower())]
    return next((WORDS[word] for word in words if word in WORDS), None)
