"""The cache: folders made once, shared by all processes of a machine, and checked when opened."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from dccl_flower.files import Write, damaged_file, refused, write_folder, write_sums

LOCKS = ".locks"
logger = logging.getLogger("dccl_flower")


def cache_root() -> Path:
    """Return the cache's folder: ``DCCL_CACHE``, else one below ``XDG_CACHE_HOME``."""
    if explicit := os.environ.get("DCCL_CACHE"):
        return Path(explicit).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dccl-flower"


def cache_entry(name: str, fill: Write) -> Path:
    """Return the folder of a cache entry; ``fill`` writes its files where they are not there yet.

    Of processes that need it at once one fills it, and the others wait. All files are read through
    for their SHA-256, which takes 0.1 s for 150 MB: what is damaged, even if with time and size
    kept, is made anew after a warning. Raises ConfError where the cache cannot be written, OSError
    that names the file where the disk is full.
    """
    folder = cache_root() / name
    if folder.is_dir() and damaged_file(folder) is None:  # a cache to read from alone serves, too
        return folder

    def fill_whole(aside: Path) -> None:
        fill(aside)
        write_sums(aside)

    with _locked(name):
        if folder.exists():
            if (damaged := damaged_file(folder)) is None:
                return folder
            logger.warning("cache file %s is damaged: making it anew", folder / damaged)
            shutil.rmtree(folder)
        write_folder(folder, fill_whole)
    return folder


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Hold the lock of an entry; a process that dies lets go of it."""
    lock = FileLock(cache_root() / LOCKS / f"{name}.lock")
    with refused(cache_root()):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
