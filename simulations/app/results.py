"""What a run leaves behind: results.json and rounds.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dccl_flower.engine import RoundFacts
from dccl_flower.files import write_json


@dataclass(frozen=True)
class RoundResult:
    """One round: what its state scored, by name, how long it took, and what the engine tells."""

    round: int
    scores: Mapping[str, float]
    seconds: float
    facts: RoundFacts

    def row(self) -> dict[str, Any]:
        """Return the round as results.json and rounds.csv have it, scores first."""
        facts = asdict(self.facts)
        del facts["worker_peak_mb"]
        return {"round": self.round, **self.scores, "seconds": self.seconds, **facts}


@dataclass
class Results:
    """Everything in results.json; sizes are bytes, times seconds.

    ``final`` are the scores of the last round, ``references`` those that they are held against, by
    model.
    """

    conf: dict[str, Any]
    seed: int
    versions: dict[str, str]
    final: dict[str, float]
    references: dict[str, Mapping[str, float]]
    rounds: list[RoundResult]
    wire: dict[str, int]
    seconds: dict[str, float]
    peak_rss_mb: dict[str, float]

    def write(self, path: Path) -> None:
        """Write results.json."""
        content = {**vars(self), "rounds": [each.row() for each in self.rounds]}
        write_json(path, content)


def virtual_seconds(rounds: Sequence[RoundResult]) -> dict[str, float]:
    """Return what the rounds would have taken in all, where a virtual clock ran."""
    clocked = [each.facts.virtual_seconds for each in rounds]
    taken = [seconds for seconds in clocked if seconds is not None]
    return {"virtual": sum(taken)} if taken else {}


def append_round(path: Path, result: RoundResult) -> None:
    """Append a line to rounds.csv, with a header first; device ids are joined by spaces."""
    is_new, row = not path.exists(), result.row()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(row)
        writer.writerow(
            " ".join(map(str, value)) if isinstance(value, list | tuple) else value
            for value in row.values()
        )
