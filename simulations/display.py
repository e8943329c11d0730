"""Show how a run is going: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

PHASES = {"pretrain": "pretraining the cloud submodel", "distil": "distilling the mimic"}


class Display:
    """Turn events into a progress bar, or into a line a round and a line a finished phase."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._bytes = 0
        self._first_round_at: float | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[note]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
            self._start_bar("starting Flower", None)
        else:
            self._console.print("starting Flower")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Show one event; unknown ones are passed over."""
        if event["event"] == "started":
            self._first_round_at = None
            if self._progress is None:
                self._console.print(f"{event['name']}, seed {event['seed']}")
        elif event["event"] == "phase":
            self._show_phase(event)
        elif event["event"] == "round":
            self._show_round(event)

    def _show_phase(self, event: dict[str, Any]) -> None:
        done, total, title = event["done"], event["total"], PHASES[event["phase"]]
        if self._progress is not None:
            self._advance(title, done, total, "epochs")
        elif done == total:
            self._console.print(f"{title}: {total} epochs done")

    def _show_round(self, event: dict[str, Any]) -> None:
        self._bytes += event["bytes_down"] + event["bytes_up"]
        accuracy, size = f"accuracy {event['accuracy']:.1%}", f"{self._bytes / 1e6:.1f} MB sent"
        done, total = event["round"], event["total"]
        if self._progress is not None:
            self._advance("rounds", done, total, f"{accuracy}, {size}")
            return
        left = (total - done) * event["seconds"]
        self._console.print(f"round {done}/{total}: {accuracy}, {size}, about {left:.0f} s left")

    def _advance(self, title: str, done: int, total: int, note: str) -> None:
        if title != self._phase:
            self._start_bar(title, total)
        assert self._progress is not None
        assert self._task is not None
        self._progress.update(self._task, completed=done, note=note)

    def _start_bar(self, title: str, total: int | None) -> None:
        assert self._progress is not None
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._phase = title
        self._task = self._progress.add_task(title, total=total, note="")


def results_table(results: dict[str, Any]) -> Table:
    """Return the short table that closes a run, from the content of results.json."""
    table = Table(title=f"{results['conf']['name']}, seed {results['seed']}, test set")
    for heading in ("model", "all classes", "cloud classes", "device classes"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    rows = {
        "cloud submodel": results["cloud_submodel"],
        "mimic": results["mimic"],
        "cloud + co (served)": results["final"],
    }
    keys = ("accuracy", "accuracy_cloud_classes", "accuracy_device_classes")
    for model, scores in rows.items():
        table.add_row(model, *(f"{scores[key]:.1%}" for key in keys))
    return table
