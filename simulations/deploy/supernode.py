"""Flower's SuperNode as a child process of our own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

from dccl_flower.simulations.superlink import (
    LOCALHOST,
    RunError,
    choose_port,
    end_family,
    flower_place,
)


class SuperNode:
    """A SuperNode on loopback with a home, a key and a log of its own; use it as a context manager.

    ``place`` is its partition id and the number of all, which it tells the server.
    """

    def __init__(
        self, home: Path, superlink: int, authority: Path, key: Path, place: tuple[int, int]
    ) -> None:
        self.log_path = home / "supernode.log"
        self._name = f"SuperNode {place[0]}"
        self._home = home
        self._command: list[str | Path] = [
            *("flower-supernode", "--superlink", f"{LOCALHOST}:{superlink}"),
            *("--root-certificates", authority, "--auth-supernode-private-key", key),
            *("--node-config", f"partition-id={place[0]} num-partitions={place[1]}"),
        ]

    def __enter__(self) -> Self:
        self._home.mkdir(parents=True, exist_ok=True)
        where = ["--host", LOCALHOST, "--port", str(choose_port(None))]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *where],
                **flower_place(self._home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        end_family(self._process.pid)
        self._process.wait()

    def check(self) -> None:
        """Raise RunError with the cause where it has ended."""
        if (code := self._process.poll()) is not None:
            cause = cause_of_exit(self.log_path.read_text(errors="replace"))
            raise RunError(f"{self._name} ended with code {code}: {cause}")


def cause_of_exit(log: str) -> str:
    """Return what a log says of why Flower ended a SuperNode: it stands in lines of its own."""
    lines = log.splitlines()
    at = next((place for place, line in enumerate(lines) if "Exit Code" in line), None)
    return (
        "no cause in its log" if at is None else " ".join(" ".join(lines[at + 1 : at + 3]).split())
    )
