"""Run many jobs side by side, each in a process of its own, and skip those that are done."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from dccl_flower.files import write_json
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.superlink import RunError

JOB_FILE, RESULT_FILE, LOG_FILE = "job.json", "result.json", "job.log"
FAILURE = "failed: "  # begins the line that tells the cause of a failure
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """A function to call on a folder; ``key`` changes with whatever decides what it returns.

    A job that ``builds_on`` another runs after it, and not where that failed.
    """

    title: str
    folder: Path
    key: str
    builds_on: Job | None = None

    @property
    def log(self) -> Path:
        """Where the job's output goes."""
        return self.folder / LOG_FILE

    def result(self) -> dict[str, Any] | None:
        """Return what the job left, or None where it is missing, damaged or of another key."""
        try:
            result: dict[str, Any] = json.loads((self.folder / RESULT_FILE).read_text())
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) and result.get("key") == self.key else None


@dataclass(frozen=True)
class Outcome:
    """A job that has ended: its result, or the cause of its failure and the log that has more."""

    job: Job
    result: dict[str, Any] | None
    error: str = ""
    seconds: float = 0.0
    log: str = ""

    @property
    def failure(self) -> str:
        """The cause with one log, of the job itself where the cause names none."""
        return f"{self.error} (log: {self.log or self.job.log})"


class JobRunner:
    """Run jobs in order, ``side_by_side`` at a time; leaving the block ends those that run."""

    def __init__(self, side_by_side: int, on_end: Callable[[Outcome], None]) -> None:
        self._pool = ThreadPoolExecutor(side_by_side)
        self._on_end = on_end
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_stopping = True
            running = list(self._processes)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
        self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run what is not done yet and return every job's outcome, in order.

        What a job builds on stands before it: the pool begins in that order, so nobody waits for
        what cannot begin.
        """
        futures: list[Future[Outcome]] = []
        by_folder: dict[Path, Future[Outcome]] = {}
        for job in jobs:
            base = by_folder[job.builds_on.folder] if job.builds_on else None
            futures.append(self._pool.submit(self._run, job, base))
            by_folder[job.folder] = futures[-1]
        return [future.result() for future in futures]

    def _run(self, job: Job, base: Future[Outcome] | None) -> Outcome:
        outcome = Outcome(job, job.result())
        if outcome.result is None and base is not None and base.result().result is None:
            failed = base.result()
            cause = f"builds on {failed.job.title}, which failed"
            outcome = Outcome(job, None, cause, log=failed.log or str(failed.job.log))
        elif outcome.result is None:
            started = time.monotonic()
            outcome = replace(self._start(job), seconds=time.monotonic() - started)
        with self._lock:
            self._on_end(outcome)
        return outcome

    def _start(self, job: Job) -> Outcome:
        with self._lock:
            if self._is_stopping:
                return Outcome(job, None, "interrupted")
            with job.log.open("wb") as log:
                process = subprocess.Popen(
                    # Without -P, what lies in the user's working directory would hide our modules
                    # and, by a stale egg-info, the methods.
                    [sys.executable, "-P", "-m", "dccl_flower.simulations.job", job.folder],
                    # A thread that waits must not burn the core that another job needs.
                    env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._processes.add(process)
        code = process.wait()
        with self._lock:
            self._processes.discard(process)
        if (result := job.result()) is not None:
            return Outcome(job, result)
        lines = job.log.read_text(errors="replace").strip().splitlines()
        failures = [line.removeprefix(FAILURE) for line in lines if line.startswith(FAILURE)]
        said = (failures or lines or [f"ended with code {code}"])[-1].strip()
        cause, _, where = said.partition(" (log: ")
        return Outcome(job, None, cause, log=where.removesuffix(")"))


class Progress:
    """Say of each job that ends how it went, and how long the others may take."""

    def __init__(self, say: Callable[[str], None], num_jobs: int, side_by_side: int) -> None:
        self._say = say
        self._left = num_jobs
        self._side_by_side = side_by_side
        self._seconds: list[float] = []

    def ended(self, outcome: Outcome) -> None:
        """Print a line with its first score; what was done before counts as no time."""
        self._left -= 1
        if outcome.seconds > 0:
            self._seconds.append(outcome.seconds)
        usual = sum(self._seconds) / len(self._seconds) if self._seconds else 0.0
        minutes = usual * math.ceil(self._left / self._side_by_side) / 60
        left = f"{self._left} left, about {minutes:.0f} min" if self._left else "all done"
        score = next(iter((outcome.result or {}).get("scores", {}).values()), 0)
        told = outcome.error or f"{score:.1%} in {outcome.seconds:.0f} s"
        self._say(f"{outcome.job.title}: {told} ({left})")


def make_job(
    title: str, folder: Path, key: str, conf_text: str, function: str, **facts: Any
) -> Job:
    """Return a job whose folder says what to call (``module:function``) on which configuration.

    The function is also given the facts, as its description.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONF_FILE).write_text(conf_text)
    write_json(folder / JOB_FILE, {"function": function, "key": key, **facts})
    return Job(title, folder, key)


def raise_failures(failures: Sequence[str]) -> None:
    """Raise RunError where there are any, with the first and how many more there are."""
    if failures:
        others = f", and {len(failures) - 1} more failed" if len(failures) > 1 else ""
        raise RunError(f"{failures[0]}{others}")
