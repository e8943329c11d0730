"""How a run tells what it is doing: one JSON line an event in the run directory."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dccl_flower.files import append_whole

EVENTS_FILE = "events.jsonl"
Tell = Callable[[dict[str, Any]], None]


class EventWriter(logging.Handler):
    """Append events to ``events.jsonl``, which displays read, and tell whoever listens here.

    As a handler of logs it turns warnings into events that tell the user something.
    """

    def __init__(self, folder: Path, *listeners: Tell) -> None:
        super().__init__(logging.WARNING)
        self._path = folder / EVENTS_FILE
        self._listeners = listeners
        if self._path.exists():  # a process that was killed may have left half a line
            os.truncate(self._path, _whole_lines(self._path))

    def write(self, event: str, **values: Any) -> None:
        """Append one event with the time in seconds since the epoch."""
        content = {"event": event, "time": time.time(), **values}
        append_whole(self._path, json.dumps(content) + "\n")
        for tell in self._listeners:
            tell(content)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record as a note."""
        self.write("note", text=record.getMessage())


class EventReader:
    """Read the events that came since the last call; the file need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS_FILE
        self._offset = 0

    def skip(self) -> None:
        """Pass over what is there already."""
        self._offset = _whole_lines(self._path) if self._path.exists() else 0

    def is_gone(self) -> bool:
        """Tell whether the file, or what was read of it, is no longer there."""
        there = self._path.stat().st_size if self._path.exists() else 0
        return there < self._offset or not self._path.parent.is_dir()

    def new_events(self) -> Iterator[dict[str, Any]]:
        """Yield each complete line once."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if line.endswith(b"\n"):
                    self._offset += len(line)
                    yield json.loads(line)


def _whole_lines(path: Path) -> int:
    """Return how many bytes of a file are complete lines."""
    return path.read_bytes().rfind(b"\n") + 1
