"""Score each round and write down what happened, for files and for who listens."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dccl_flower.codecs import State
from dccl_flower.engine import RoundFacts
from dccl_flower.experiment import Experiment
from dccl_flower.files import append_whole
from dccl_flower.method import find_method
from dccl_flower.simulations.app.boards import Boards, RunFacts
from dccl_flower.simulations.app.events import EventWriter

ROUNDS_FILE = "rounds.csv"
Row = dict[str, Any]


class Recorder:
    """A method, and what comes of it: events, rounds.csv, and what boards draw.

    Called after each round with its state. ``after`` is the last round that was told before.
    """

    def __init__(
        self, experiment: Experiment, folder: Path, events: EventWriter, after: int = 0
    ) -> None:
        self.rounds: list[Row] = []
        self.final: dict[str, float] = {}
        self.final_state: State = {}
        self.seconds: dict[str, float] = {}
        self.worker_peak_mb = 0.0
        (folder / ROUNDS_FILE).unlink(missing_ok=True)  # of an attempt that completed no round
        self._folder = folder
        self._events = events
        self._num_rounds = experiment.conf.rounds.count
        self._last = time.monotonic()
        self.method = find_method(experiment.conf.method.name).server(experiment, self._progress)
        self.boards = Boards(RunFacts(experiment.conf, folder, after))

    def __call__(self, number: int, state: State, facts: RoundFacts) -> dict[str, float]:
        """Return the state's scores; round 0 is not written down."""
        scores = dict(self.method.scores(state))
        if number > 0:
            self.final, self.final_state = scores, state
            self.worker_peak_mb = max(self.worker_peak_mb, facts.worker_peak_mb)
            self._record(round_row(number, scores, time.monotonic() - self._last, facts))
        self._last = time.monotonic()
        return scores

    def told(self) -> dict[str, Any]:
        """Return what has been written down, as plain values."""
        return {
            "rounds": self.rounds,
            "final": self.final,
            "seconds": self.seconds,
            "worker_peak_mb": self.worker_peak_mb,
        }

    def so_far(self) -> dict[str, float]:
        """Return what all rounds have sent, in bytes, and taken by the virtual clock."""
        sent = sum(row["bytes_down"] + row["bytes_up"] for row in self.rounds)
        return {"bytes": sent, "virtual": sum(row["virtual_seconds"] or 0.0 for row in self.rounds)}

    def go_on(self, told: Mapping[str, Any], state: State) -> None:
        """Take over what another one had told, and its last state; rounds.csv is written anew."""
        self.rounds, self.final, self.final_state = told["rounds"], told["final"], state
        self.seconds, self.worker_peak_mb = told["seconds"], told["worker_peak_mb"]
        for row in self.rounds:
            append_row(self._folder / ROUNDS_FILE, row)

    def _progress(self, phase: str, done: int, total: int, loss: float | None = None) -> None:
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
        self._events.write("phase", phase=phase, done=done, total=total)
        if loss is not None:
            self.boards.log({f"{phase}/loss": loss}, done, phase)

    def _record(self, row: Row) -> None:
        self.rounds.append(row)
        append_row(self._folder / ROUNDS_FILE, row)
        values = {f"test/{name}": value for name, value in self.final.items()}
        values |= {f"wire/{name}": row[name] for name in ("bytes_down", "bytes_up")}
        if row["virtual_seconds"] is not None:
            values["virtual/seconds"] = row["virtual_seconds"]
        self.boards.log(values, row["round"])
        self._events.write("round", total=self._num_rounds, score=next(iter(self.final), ""), **row)


def round_row(number: int, scores: Mapping[str, float], seconds: float, facts: RoundFacts) -> Row:
    """Return a round as results.json and rounds.csv have it, scores first."""
    row = {"round": number, **scores, "seconds": seconds, **asdict(facts)}
    del row["worker_peak_mb"]
    return row


def append_row(path: Path, row: Row) -> None:
    """Append a line to rounds.csv, with a header first; lists and counts are joined by spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        writer.writerow(row)
    writer.writerow(_cell(value) for value in row.values())
    append_whole(path, text.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={each}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value
