"""Files and folders that appear whole or not at all, and short names of their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dccl_flower.config import ConfError

Write = Callable[[Path], Any]


def write_aside(path: Path, content: str | bytes | Write) -> None:
    """Write a file beside its place and rename it, so that nobody reads half of it.

    ``content`` may be a function that writes to the path it is given; whatever library it calls,
    the file's mode is the umask's. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    aside = _beside(path)
    try:
        if isinstance(data, bytes):
            aside.write_bytes(data)
        else:
            aside.touch(exist_ok=False)
            mode = aside.stat().st_mode
            data(aside)
            aside.chmod(mode)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read, aside. Raises TypeError for what JSON does not know."""
    write_aside(path, json.dumps(content, indent=2) + "\n")


def write_folder(folder: Path, fill: Write) -> None:
    """Fill a folder aside and rename it; where another process was faster, its folder stays.

    Raises ConfError where the folder above cannot be written.
    """
    aside = _beside(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        fill(aside)
        aside.rename(folder)
    except OSError as error:
        if not os.path.exists(folder):  # which does not raise where it may not look
            cause = error.strerror or error
            raise ConfError(f"cache {folder.parent}: cannot be written ({cause})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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


def _beside(path: Path) -> Path:
    """Return a path that no other process or thread writes to."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
