"""Which files of a folder are training data and which are test data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dccl_flower.config import ConfError

SPLITS = ("train", "test")
ENDS = ("", "ing", "set")
OTHER_WORDS = {"validation": ("valid", "val", "dev")}
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def data_files(path: str, wanted: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the sorted files of each split, each once: those named after it, else in its folder.

    They are parquet files, or where there are none images, whose innermost folder is their class.
    ``wanted`` tells the name that each split has there. A name is read by words, of which the first
    that names a split counts: ``constrained`` is no training file, ``test_train`` a test file. Of
    nested folders the innermost counts, as in the hub's ``default/train/0000.parquet``. Hidden
    files are left out. Raises ConfError where there is no such folder, or a split without files.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfError(f"data.path={path}: no such folder")
    folder = folder.resolve()
    there = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    ]
    parquet = [file for file in there if file.suffix == ".parquet"]
    images = [file for file in there if file.suffix.lower() in IMAGES]
    split_of = {name: split for split, name in wanted.items()}
    by_name: dict[str, list[str]] = {split: [] for split in wanted}
    by_folder: dict[str, list[str]] = {split: [] for split in wanted}
    for file in parquet or images:
        parts = file.relative_to(folder).parts
        named = _split_named(parts[-1:]) if parquet else None  # an image's name tells nothing
        if split := split_of.get(named or ""):
            by_name[split].append(str(file))
        elif named is None and (split := split_of.get(_split_named(parts[-2::-1]) or "")):
            by_folder[split].append(str(file))
        elif named is None and len(wanted) == 1 and not _split_named(parts[-2::-1]):
            by_folder["train"].append(str(file))
    files = {split: by_name[split] or by_folder[split] for split in wanted}
    for split, name in wanted.items():
        if not files[split]:
            either = f"no {name}*.parquet, no {name}/*.parquet and no images in {name}/CLASS/"
            raise ConfError(f"data.path={path}: holds {either}")
    return files


def is_parquet(files: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether files of :func:`data_files` are parquet."""
    return any(file.endswith(".parquet") for each in files.values() for file in each)


def _split_named(names: Sequence[str]) -> str | None:
    words = [word for name in names for word in re.findall("[a-z]+", name.lower())]
    return next((WORDS[word] for word in words if word in WORDS), None)


def _words() -> dict[str, str]:
    words = {split + end: split for split in (*SPLITS, *OTHER_WORDS) for end in ENDS}
    return words | {word: split for split, others in OTHER_WORDS.items() for word in others}


WORDS = _words()
