"""Show how ``dccl scale`` is going: live on a terminal, a line a measurement elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from dccl_flower.simulations.run.display import Display


class ScaleDisplay(Display):
    """One line for each measurement that has ended; on a terminal also its rounds as they come."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        super().__init__(console)
        self._total = total
        self._place = 0
        self._case = ""
        self._began = 0.0

    def begin(self, title: str) -> None:
        """Say which measurement comes next."""
        self._place += 1
        self._case = f"[{self._place}/{self._total}] {title}"
        self._began = time.monotonic()
        self.note("starting")

    def end(self, row: dict[str, Any]) -> None:
        """Say what a measurement gave."""
        seconds = time.monotonic() - self._began
        self._say(f"[{self._place}/{self._total}] {outcome(row)} ({seconds:.0f} s)")

    def note(self, title: str) -> None:
        """Show what is being done now, on a terminal only."""
        if self._is_live:
            self._advance(self._case, 0, None, title)

    def _show_phase(self, title: str, done: int, total: int, now: float) -> None:
        if self._is_live:
            self._advance(self._case, done, total, f"{title} {done}/{total}")

    def _show_round(self, event: dict[str, Any], done: int, total: int) -> None:
        self._show_phase("round", done, total, 0.0)


def outcome(row: dict[str, Any]) -> str:
    """Return in one line what a row holds."""
    if "error" in row:
        told = f"failed: {row['error']}"
    elif "note" in row:
        told = row["note"]
    elif (later := row["later"]) is None:
        told = "no later round"
    else:
        cpu, wall = 1000 * later["cpu_s"], 1000 * later["wall_s"]
        told = f"{cpu:.1f} ms of CPU and {wall:.1f} ms a later turn"
    return f"{row['title']}: {told}"
