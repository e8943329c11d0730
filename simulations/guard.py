"""End Flower and remove its folder where the command that started both died without doing so.

As a program, ``python guard.py HOME``, it waits until its standard input is closed, which the
system does for a process that ends, however it ends. It is run by its path, for the package would
bring torch into its memory.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import psutil

HOME = "FLWR_HOME"
DISMISSED = b"dismissed"
STOP_SECONDS = 10.0


def of_home(home: str) -> list[psutil.Process]:
    """Return all processes that were started with a Flower home, and what these started."""
    return list(_of_home(home))


def end(processes: list[psutil.Process]) -> None:
    """End processes, gently first."""
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                stop(process)
        _, processes = psutil.wait_procs(processes, timeout=STOP_SECONDS)


class Guard:
    """A process that acts once this one is gone, unless it is dismissed before."""

    def __init__(self, home: str) -> None:
        command = [sys.executable, __file__, home]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, start_new_session=True)

    def dismiss(self) -> None:
        """Let it end without doing anything."""
        self._process.communicate(DISMISSED)


def main(home: str) -> None:
    """Wait, then end what is left."""
    if sys.stdin.buffer.read() != DISMISSED:
        end(of_home(home))
        shutil.rmtree(home, ignore_errors=True)


def _of_home(home: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # another user's, or gone by now
            # Ray's agents write their titles over their environment.
            if home in (process.environ().get(HOME), process.cwd()):
                yield process


if __name__ == "__main__":
    main(sys.argv[1])
