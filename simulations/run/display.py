"""Show how a run is going: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_SECONDS = 10.0


class Display:
    """Turn events into a progress bar, or into a line a round and a line a finished phase."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._title = ""
        self._bytes = 0
        self._virtual = 0.0
        self._phase_began = self._said_at = 0.0
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[note]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def note(self, title: str) -> None:
        """Say what is being done now, without an end in sight."""
        self._say(title) if self._progress is None else self._advance(title, 0, None, "")

    def show(self, event: dict[str, Any]) -> None:
        """Show one event; those that need no word are passed over."""
        if event["event"] == "note":
            self._say(event["text"])
        elif event["event"] == "started":
            self._phase_began = event["time"]
        elif event["event"] == "phase":
            self._show_phase(event)
        elif event["event"] == "round":
            self._show_round(event)

    def _show_phase(self, event: dict[str, Any]) -> None:
        done, total, title = event["done"], event["total"], event["phase"]
        if self._progress is not None:
            self._advance(title, done, total, f"epoch {done}/{total}")
            return
        if done == 1 or title != self._title:
            self._title, self._said_at = title, self._phase_began
        left = (event["time"] - self._phase_began) / done * (total - done)
        if done == total:
            self._say(f"{title}: {total} epochs done")
            self._phase_began = event["time"]
        elif event["time"] - self._said_at > PLAIN_SECONDS:
            self._said_at = event["time"]
            self._say(f"{title}: epoch {done}/{total}, about {left:.0f} s left")

    def _show_round(self, event: dict[str, Any]) -> None:
        done, total = event["round"], event["total"]
        self._bytes += event["bytes_down"] + event["bytes_up"]
        self._seconds.append(event["seconds"])
        score = event["score"]
        told = f"{score.replace('_', ' ')} {event[score]:.1%}, " if score else ""
        note = f"{told}{self._bytes / 1e6:.1f} MB sent"
        if event.get("virtual_seconds") is not None:
            self._virtual += event["virtual_seconds"]
            note += f", {self._virtual:.3g} virtual s"
        if self._progress is not None:
            self._advance("rounds", done, total, f"round {done}/{total}, {note}")
            return
        # The first round also waits for Flower's workers, so it says little about the others.
        left = (total - done) * mean(self._seconds[1:] or self._seconds)
        self._say(f"round {done}/{total}: {note}, about {left:.0f} s left")

    def _advance(self, title: str, done: int, total: int | None, note: str) -> None:
        assert self._progress is not None
        if title != self._title:
            if self._title:
                self._progress.remove_task(self._task)
            self._title = title
            self._task = self._progress.add_task(title, total=total, note="")
        self._progress.update(self._task, completed=done, note=note)

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def results_table(results: dict[str, Any]) -> Table:
    """Return the short table that closes a run, from the content of results.json.

    Its columns are the scores that a reference has too, or all where there is no reference.
    """
    final, references = results["final"], results["references"]
    shared = [name for name in final if any(name in each for each in references.values())]
    table = Table(title=f"{results['conf']['name']}, seed {results['seed']}, test set")
    for heading in ("model", *(shared or final)):
        justify: Any = "left" if heading == "model" else "right"
        table.add_column(heading.replace("_", " "), justify=justify)
    for model, scores in {**references, "served": final}.items():
        cells = (f"{scores[name]:.1%}" if name in scores else "-" for name in shared or final)
        table.add_row(model.replace("_", " "), *cells)
    return table


def other_scores(results: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each model with scores that the table leaves out."""
    final = results["final"]
    for model, scores in {**results["references"], "served": final}.items():
        others = results["references"] if model == "served" else {"served": final}
        told = [
            f"{name.replace('_', ' ')} {value:.3g}"
            for name, value in scores.items()
            if not any(name in each for each in others.values())
        ]
        if told and results["references"]:
            yield f"{model.replace('_', ' ')}: {', '.join(told)}"
