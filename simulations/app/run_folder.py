"""The run directory: new for every run, so that no run overwrites another."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from dccl_flower.config import Conf, ConfError
from dccl_flower.simulations.app.events import EVENTS_FILE

CONF_FILE, LOG_FILE = "conf.yaml", "flower.log"
MADE_BY_RUNNER = {CONF_FILE, LOG_FILE}


def default_folder(conf: Conf) -> Path:
    """Return ``runs/NAME-seedS-TIME`` below the working directory."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return Path.cwd() / "runs" / f"{Path(conf.name).name}-seed{conf.seed}-{stamp}"


def check_folder(folder: Path) -> None:
    """Raise ConfError unless the folder is new or empty and can be written."""
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfError(f"output={folder}: is a file; expected a new directory")
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfError(f"output={folder}: is not empty; expected a new directory")
        above = next(parent for parent in [folder, *folder.parents] if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise ConfError(f"output={folder}: {above} cannot be written")
    except OSError as error:
        raise ConfError(f"output={folder}: {error.strerror}") from error


def make_folder(folder: Path) -> None:
    """Make the folder. Raises ConfError where that fails or it is not empty."""
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfError(f"output={folder}: cannot be made ({error.strerror})") from error


def claim_folder(folder: Path) -> None:
    """Make the folder and mark it as taken by this run.

    Raises ConfError where it holds more than what ``dccl run`` laid down for the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if set(os.listdir(folder)) - MADE_BY_RUNNER:
        raise ConfError(f"output={folder}: is not empty; expected a new directory")
    try:
        (folder / EVENTS_FILE).touch(exist_ok=False)
    except FileExistsError as error:
        raise ConfError(f"output={folder}: another run writes there") from error
