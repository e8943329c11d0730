"""The run directory: new for every run, so that no run overwrites another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.app.events import EVENTS_FILE

CONF_FILE, LOG_FILE, RESULTS_FILE = "conf.yaml", "flower.log", "results.json"
DEVICES_FOLDER = "devices"
RUN_LOCK, COMMAND_LOCK = ".run.lock", ".command.lock"
MADE_BY_RUNNER = {CONF_FILE, LOG_FILE, COMMAND_LOCK}


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


def check_resumable(folder: Path) -> None:
    """Raise ConfError unless there is a run that has ended without results."""
    given = f"resume={folder}"
    if not (folder / CONF_FILE).is_file():
        raise ConfError(f"{given}: no run is there; expected a folder with {CONF_FILE}")
    if (folder / RESULTS_FILE).exists():
        raise ConfError(f"{given}: the run is done; expected one that was stopped")
    if is_locked(folder / RUN_LOCK):
        raise ConfError(f"{given}: the run is still running")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file of a run's folder inside the block; a process that dies lets go of it.

    Raises ConfError where another holds it.
    """
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise ConfError(f"output={path.parent}: another run writes there") from error


def is_locked(path: Path) -> bool:
    """Tell whether a process holds a lock file."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def run_arguments(run_config: Mapping[str, Any]) -> tuple[str, str]:
    """Return configuration and overrides of a run of Flower: its own, or of the run it resumes."""
    resumed = str(run_config.get("resume", ""))
    if resumed and (conf := Path(resumed).expanduser() / CONF_FILE).exists():
        return str(conf), ""
    return str(run_config["conf"]), str(run_config["overrides"])


def conf_to_run(
    conf: str | None, changes: Sequence[str], resume: Path | None, output: Path | None
) -> Conf:
    """Return the configuration of a new run, or of one that goes on and takes no other settings.

    Raises ConfError where neither is named, or both are.
    """
    if resume is None:
        if conf is None:
            raise ConfError("Missing argument 'CONF'.")
        return load_conf(conf, changes)
    if more := [str(given) for given in (conf, *changes, output) if given is not None]:
        raise ConfError(f"resume={resume}: takes no settings but its own, not {more[0]}")
    if not (resume / CONF_FILE).is_file():
        raise ConfError(f"resume={resume}: no run is there; expected a folder with {CONF_FILE}")
    return load_conf(str(resume / CONF_FILE))
