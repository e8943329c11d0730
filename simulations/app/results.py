"""What a run leaves behind: results.json and rounds.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dccl_flower.files import write_json
from dccl_flower.learning.evaluate import Scores
from dccl_flower.learning.fidelity import Fidelity


@dataclass(frozen=True)
class RoundResult:
    """One round on the test set; bytes as counted from the messages, devices by id.

    With device profiles ``virtual_seconds`` is what the round would have taken; ``late`` and
    ``gone`` devices were asked and did not answer in time.
    """

    round: int
    accuracy: float
    accuracy_cloud_classes: float
    accuracy_device_classes: float
    plug_in_gap: float
    bytes_down: int
    bytes_up: int
    seconds: float
    devices: list[int]
    virtual_seconds: float | None = None
    late: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)


@dataclass
class Results:
    """Everything in results.json; accuracies are fractions, sizes bytes, times seconds."""

    conf: dict[str, Any]
    seed: int
    versions: dict[str, str]
    final: dict[str, float]
    cloud_submodel: Scores
    mimic: Scores
    mimic_fidelity: dict[str, Fidelity]
    rounds: list[RoundResult]
    wire: dict[str, int]
    seconds: dict[str, float]
    peak_rss_mb: dict[str, float]

    def write(self, path: Path) -> None:
        """Write results.json, whole or not at all."""
        write_json(path, asdict(self))


def final_scores(last: RoundResult) -> dict[str, float]:
    """Return the last round's scores as results.json gives them."""
    return {
        "accuracy": last.accuracy,
        "accuracy_cloud_classes": last.accuracy_cloud_classes,
        "accuracy_device_classes": last.accuracy_device_classes,
        "accuracy_mimic_co": last.accuracy - last.plug_in_gap,
        "plug_in_gap": last.plug_in_gap,
    }


def virtual_seconds(rounds: Sequence[RoundResult]) -> dict[str, float]:
    """Return what the rounds would have taken in all, where a virtual clock ran."""
    taken = [each.virtual_seconds for each in rounds if each.virtual_seconds is not None]
    return {"virtual": sum(taken)} if taken else {}


def append_round(path: Path, result: RoundResult) -> None:
    """Append a line to rounds.csv, with a header first; device ids are joined by spaces."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(field.name for field in fields(result))
        writer.writerow(
            " ".join(map(str, value)) if isinstance(value, list) else value
            for value in asdict(result).values()
        )
