"""Files and folders that appear whole or not at all, and short names of their content."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from dccl_flower.config import ConfError

Write = Callable[[Path], Any]
SUMS = "SHA256"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_aside(path: Path, content: str | bytes | Write) -> None:
    """Write a file beside its place and rename it, so that nobody reads half of it.

    ``content`` may be a function that writes to the path it is given; whatever library it calls,
    the file's mode is the umask's. Missing folders are made. An OSError names the file.
    """
    data = content.encode() if isinstance(content, str) else content
    aside = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, bytes):
            aside.write_bytes(data)
        else:
            aside.touch(exist_ok=False)
            mode = aside.stat().st_mode
            data(aside)
            aside.chmod(mode)
        aside.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read, aside. Raises TypeError for what JSON does not know."""
    write_aside(path, json.dumps(content, indent=2) + "\n")


def append_whole(path: Path, text: str) -> None:
    """Append to a file all of a text or, where the disk is full, nothing. An OSError names it."""
    left = memoryview(text.encode())
    with naming(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(before)
            raise


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy; unlike numpy's own, this tells why it cannot be written."""
    whole = np.ascontiguousarray(array)
    with naming(path), path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(whole)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(whole.tobytes())


def write_folder(folder: Path, fill: Write) -> None:
    """Fill a folder aside and rename it. An OSError names a file of ``folder``.

    Raises ConfError where the folder above may not be written.
    """
    aside = _beside(folder)
    try:
        with refused(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            aside.mkdir()
        fill(aside)
        aside.rename(folder)
    except OSError as error:
        if is_full(error):
            error.filename = str(error.filename or folder).replace(str(aside), str(folder))
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def refused(folder: Path) -> Iterator[None]:
    """Raise ConfError, which names a cache, for an OSError inside but that of a full disk."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise
        cause = error.strerror or error
        raise ConfError(f"cache {folder}: cannot be written ({cause})") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError inside name the file where it does not, as those of writing do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def is_full(error: OSError) -> bool:
    """Tell whether a disk or a quota has no more room."""
    return error.errno in FULL


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of each file of a folder, as ``sha256sum --check`` reads them."""
    files = sorted(folder.iterdir())
    write_aside(folder / SUMS, "".join(f"{sha256_of(file)}  {file.name}\n" for file in files))


def damaged_file(folder: Path) -> str | None:
    """Return the first file of a folder that is missing, or not as :func:`write_sums` found it.

    That is the file of sums itself where it cannot be read. None where all is well.
    """
    try:
        lines = (folder / SUMS).read_text().splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        return SUMS
    if not sums:
        return SUMS
    for name in sorted(sums.keys() | {file.name for file in folder.iterdir()} - {SUMS}):
        try:
            if sha256_of(folder / name) != sums.get(name):
                return name
        except OSError:
            return name
    return None


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for the eyes of its user alone."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def content_key(*facts: object) -> str:
    """Return a short hash (16 hexadecimal digits) of plain values."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@cache
def code_digest() -> str:
    """Return a hash of the sources, so that no result outlives a change of what made it."""
    digest = hashlib.sha256()
    for package in ("dccl_flower", "dccl_flower.strategies"):
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path) -> Path:
    """Return a path that no other process or thread writes to."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
