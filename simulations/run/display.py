"""Show how a run is going: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_SECONDS = 10.0


class Display:
    """Turn events into a progress bar, or into a line a round and a line a finished phase."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._is_live = self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = TaskID(0)
        self._title = ""
        self._bytes = 0
        self._virtual = 0.0
        self._phase_began = self._said_at = 0.0
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._progress.stop()

    def note(self, title: str) -> None:
        """Say what is being done now, without an end in sight."""
        self._advance(title, 0, None, "") if self._is_live else self._say(title)

    def show(self, event: dict[str, Any]) -> None:
        """Show one event; those that need no word are passed over."""
        if event["event"] == "note":
            self._say(event["text"])
        elif event["event"] == "started":
            self._phase_began = event["time"]
        elif event["event"] == "prepared":  # by an earlier attempt, too
            self._bytes, self._virtual = event["bytes"], event["virtual"]
        elif event["event"] == "phase":
            self._show_phase(event["phase"], event["done"], event["total"], event["time"])
        elif event["event"] == "round":
            self._show_round(event, event["round"], event["total"])

    def _show_phase(self, title: str, done: int, total: int, now: float) -> None:
        if self._is_live:
            self._advance(title, done, total, f"epoch {done}/{total}")
            return
        if done == 1 or title != self._title:
            self._title, self._said_at = title, self._phase_began
        left = (now - self._phase_began) / done * (total - done)
        if done == total:
            self._say(f"{title}: {total} epochs done")
            self._phase_began = now
        elif now - self._said_at > PLAIN_SECONDS:
            self._said_at = now
            self._say(f"{title}: epoch {done}/{total}, about {left:.0f} s left")

    def _show_round(self, event: dict[str, Any], done: int, total: int) -> None:
        self._bytes += event["bytes_down"] + event["bytes_up"]
        self._seconds.append(event["seconds"])
        score = event["score"]
        told = f"{score.replace('_', ' ')} {event[score]:.1%}, " if score else ""
        note = f"{told}{self._bytes / 1e6:.1f} MB sent"
        if event.get("virtual_seconds") is not None:
            self._virtual += event["virtual_seconds"]
            note += f", {self._virtual:.3g} virtual s"
        if self._is_live:
            self._advance("rounds", done, total, f"round {done}/{total}, {note}")
            return
        # The first round also waits for Flower's workers, so it says nothing about the others.
        if usual := self._seconds[1:]:
            note += f", about {(total - done) * mean(usual):.0f} s left"
        self._say(f"round {done}/{total}: {note}")

    def _advance(self, title: str, done: int, total: int | None, note: str) -> None:
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
    table = Table(title=f"{results['conf']['name']}, seed {results['seed']}, test set")
    table.add_column("model")
    columns = _columns(results)
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for model, scores in _models(results).items():
        cells = (f"{scores[name]:.1%}" if name in scores else "-" for name in columns)
        table.add_row(model.replace("_", " "), *cells)
    return table


def other_scores(results: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each model with scores that the table leaves out."""
    columns = _columns(results)
    for model, scores in _models(results).items():
        told = [
            f"{name.replace('_', ' ')} {value:.3g}"
            for name, value in scores.items()
            if name not in columns
        ]
        if told:
            yield f"{model.replace('_', ' ')}: {', '.join(told)}"


def _models(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {**results["references"], "served": results["final"]}


def _columns(results: dict[str, Any]) -> list[str]:
    final, references = results["final"], results["references"].values()
    return [name for name in final if any(name in each for each in references)] or list(final)
