"""What share of a round its checks and its checkpoint take, measured in rounds of this process.

``python -m dccl_flower.simulations.overhead CONF [KEY=VALUE ...]`` prints a table.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from dccl_flower import in_process
from dccl_flower.config_loading import load_conf
from dccl_flower.fleet.judge import Judge
from dccl_flower.simulations.app.in_process import run_anywhere
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.reports import command_line, table
from dccl_flower.simulations.run.display import Display
from dccl_flower.standing import Checkpoints

CHECKS = ((in_process, "check_values"), (in_process, "check_count"), (Judge, "check"))
CHECKPOINTS = ((Checkpoints, "save"),)


def shares(conf_name: str, overrides: list[str]) -> tuple[float, float]:
    """Return the median share of a round's time that checks take, and that its checkpoint takes.

    The first round is left out: it warms up. A round reaches from one to the next, from the
    checkpoint of the one before to its own scores.
    """
    experiment = open_experiment(load_conf(conf_name, overrides))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        checks = [stack.enter_context(_timed(*each)) for each in CHECKS]
        (saves,) = [stack.enter_context(_timed(*each)) for each in CHECKPOINTS]
        marks: list[float] = []
        stack.enter_context(_marked(marks, checks))
        results = run_anywhere(experiment, Path(folder) / "run", Display(), 0, here=True)
    rounds = [row["seconds"] for row in results["rounds"]]
    spent = [after - before for before, after in pairwise(marks)]
    of_checks = [part / whole for part, whole in zip(spent, rounds, strict=True)]
    of_saves = [part / whole for part, whole in zip(saves[:-1], rounds, strict=True)]
    return median(of_checks[1:]), median(of_saves[1:])


def main(conf_name: str, *overrides: str) -> None:
    """Measure three times and print the table under its command."""
    found = [shares(conf_name, list(overrides)) for _ in range(3)]
    rows = [
        [what, f"{median(each):.2%}", f"{min(each):.2%}", f"{max(each):.2%}"]
        for what, each in zip(("checks", "checkpoint"), zip(*found, strict=True), strict=True)
    ]
    own = f"python -m {__spec__.name if __spec__ else __name__}"
    print(command_line("overhead", conf_name, overrides).replace("dccl overhead", own, 1))
    print(table(["share of a round", "median of three runs", "least", "most"], rows))


@contextmanager
def _timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Note the seconds of each call of a function inside the block."""
    seconds: list[float] = []
    inner: Callable[..., Any] = getattr(owner, name)

    def timed(*given: Any, **more: Any) -> Any:
        started = time.perf_counter()
        try:
            return inner(*given, **more)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(owner, name, timed)
    try:
        yield seconds
    finally:
        setattr(owner, name, inner)


@contextmanager
def _marked(marks: list[float], checks: list[list[float]]) -> Iterator[None]:
    """Note at each checkpoint how many seconds all checks have taken so far."""
    inner = Checkpoints.save

    def marked(*given: Any) -> None:
        marks.append(sum(map(sum, checks)))
        inner(*given)

    Checkpoints.save = marked  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Checkpoints.save = inner  # type: ignore[method-assign]


if __name__ == "__main__":
    main(*sys.argv[1:])
