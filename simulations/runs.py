"""What became of the runs below a folder, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from dccl_flower.config import ConfError
from dccl_flower.simulations.app.events import EVENTS_FILE
from dccl_flower.simulations.app.run_folder import (
    COMMAND_LOCK,
    CONF_FILE,
    RESULTS_FILE,
    RUN_LOCK,
    is_locked,
)
from dccl_flower.standing import last_round

COLUMNS = ("run", "state", "method", "seed", "round", "score", "seconds")


@dataclass(frozen=True)
class Run:
    """One run: its folder, what became of it, and how far it has come."""

    folder: Path
    state: str
    method: str
    seed: str
    round: str
    score: str
    seconds: str


def runs_below(folder: Path) -> list[Run]:
    """Return the runs in a folder and below it, by path. Raises ConfError where there is none."""
    found = sorted(path.parent for path in folder.rglob(CONF_FILE))
    if not found:
        raise ConfError(f"{folder}: no run is there")
    return [_run(each) for each in found]


def runs_table(runs: list[Run], folder: Path) -> Table:
    """Return the runs as a table; paths are as seen from ``folder``."""
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in COLUMNS[4:] else "left")
    for run in runs:
        place = str(run.folder.relative_to(folder))
        told = (run.state, run.method, run.seed, run.round, run.score, run.seconds)
        table.add_row(place, *told)
    return table


def _run(folder: Path) -> Run:
    conf, events = _conf(folder / CONF_FILE), list(_events(folder / EVENTS_FILE))
    rounds = [event for event in events if event.get("event") == "round"]
    last = rounds[-1] if rounds else {}
    score = f"{last[last['score']]:.1%}" if last.get("score") in last else "-"
    times = [event["time"] for event in events if "time" in event]
    return Run(
        folder,
        _state(folder),
        str((conf.get("method") or {}).get("name", "-")),
        str(conf.get("seed", "-")),
        f"{last['round']}/{last['total']}" if rounds else "-",
        score,
        f"{times[-1] - times[0]:.0f}" if times else "-",
    )


def _state(folder: Path) -> str:
    if any(is_locked(folder / name) for name in (RUN_LOCK, COMMAND_LOCK)):
        return "running"
    if (folder / RESULTS_FILE).exists():
        return "done"
    done = last_round(folder)
    return "failed" if done is None else f"can be resumed after round {done}"


def _conf(path: Path) -> dict[str, Any]:
    try:
        conf = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return conf if isinstance(conf, dict) else {}


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what can be read of a file of events."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:  # half a line, of a process that was killed
            continue
