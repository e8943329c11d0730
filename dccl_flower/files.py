"""Files and folders that appear whole or not at all, and short names of their content."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dccl_flower.config import ConfError

Write = Callable[[Path], Any]


def write_aside(path: Path, content: str | bytes | Write) -> None:
    """Write a file beside its place and rename it, so that nobody reads half of it.

    ``content`` may be a function that writes to the path it is given. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    aside = _beside(path)
    try:
        if isinstance(data, bytes):
            aside.write_bytes(data)
        else:
            data(aside)
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
    except OSError as error:
        raise ConfError(f"cache {folder.parent}: cannot be written ({error.strerror})") from error
    try:
        fill(aside)
        aside.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def content_key(*facts: object) -> str:
    """Return a short hash (16 hexadecimal digits) of plain values."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _beside(path: Path) -> Path:
    """Return a path that no other process or thread writes to."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
