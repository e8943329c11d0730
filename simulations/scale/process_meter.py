"""CPU-seconds and memory of a process and everything it started, by group."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

GroupOf = Callable[[list[str]], str]
SAMPLE_SECONDS = 0.5
DRIVER, WORKER, RAY = "driver", "worker", "ray"


@dataclass(frozen=True)
class Sample:
    """CPU-seconds of a process tree up to a time, those of ended processes included."""

    time: float
    cpu: float


def flower_group(command: list[str]) -> str:
    """Tell Flower's server processes, the workers that train, and Ray's own daemons apart."""
    words = " ".join(command)
    if words.startswith("ray::ClientAppActor"):
        return WORKER
    is_ray = words.startswith("ray::") or "/ray/" in words or "site-packages/ray" in words
    return RAY if is_ray else DRIVER


class ProcessMeter:
    """Sample a process tree from a thread; use it as a context manager.

    A process that has ended keeps the CPU-seconds it was last seen with. Memory is resident size,
    pages that processes share counted for each.
    """

    def __init__(
        self, pid: int, group_of: GroupOf = flower_group, interval: float = SAMPLE_SECONDS
    ) -> None:
        self._pid = pid
        self._group_of = group_of
        self._interval = interval
        self._cpu: dict[tuple[int, float], float] = {}  # by process id and time of birth
        self._samples: list[Sample] = []
        self._peaks: dict[str, float] = {}
        self._largest: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def cpu_at(self, moment: float) -> float:
        """Return the CPU-seconds used up to a moment (s since the epoch), between two samples.

        Outside what was sampled, those of the nearest sample.
        """
        samples = list(self._samples)
        after = bisect_left(samples, moment, key=lambda sample: sample.time)
        if after == 0:
            return samples[0].cpu
        if after == len(samples):
            return samples[-1].cpu
        low, high = samples[after - 1], samples[after]
        share = (moment - low.time) / (high.time - low.time)
        return low.cpu + share * (high.cpu - low.cpu)

    def peak_mb(self, group: str) -> float | None:
        """Return the largest resident size in MB of all processes of a group together."""
        return self._peaks.get(group)

    def largest_mb(self, group: str) -> float | None:
        """Return the largest resident size in MB of any one process of a group."""
        return self._largest.get(group)

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()
        self._sample()

    def _sample(self) -> None:
        together: dict[str, float] = {}
        for process in _family(self._pid):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    self._cpu[process.pid, process.create_time()] = times.user + times.system
                    size = process.memory_info().rss / 1e6
                    group = self._group_of(process.cmdline())
            except psutil.Error:  # it has ended meanwhile
                continue
            together[group] = together.get(group, 0.0) + size
            self._largest[group] = max(self._largest.get(group, 0.0), size)
        for group, size in together.items():
            self._peaks[group] = max(self._peaks.get(group, 0.0), size)
        self._samples.append(Sample(time.time(), sum(self._cpu.values())))


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
