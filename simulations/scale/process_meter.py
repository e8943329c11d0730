"""CPU-seconds and memory of a process and everything it started, by group."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Self

import numpy as np
import psutil

from dccl_flower.simulations.superlink import family

SAMPLE_SECONDS = 0.5
DRIVER, WORKER, RAY = "driver", "worker", "ray"


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

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu: dict[tuple[int, float], float] = {}  # by process id and time of birth
        self._samples: list[tuple[float, float]] = []  # time, CPU-seconds of all
        self._peaks: Counter[str] = Counter()
        self._largest: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def cpu_at(self, moment: float) -> float:
        """Return the CPU-seconds used up to a moment (s since the epoch), between two samples.

        Outside what was sampled, those of the nearest sample.
        """
        times, cpu = zip(*self._samples, strict=True)
        return float(np.interp(moment, times, cpu))

    def peak_mb(self, group: str) -> float | None:
        """Return the largest resident size in MB of all processes of a group together."""
        return self._peaks[group] / 1e6 or None

    def largest_mb(self, group: str) -> float | None:
        """Return the largest resident size in MB of any one process of a group."""
        return self._largest[group] / 1e6 or None

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()
        self._sample()

    def _sample(self) -> None:
        together: Counter[str] = Counter()
        for process in family(self._pid):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    self._cpu[process.pid, process.create_time()] = times.user + times.system
                    size = process.memory_info().rss
                    group = flower_group(process.cmdline())
            except psutil.Error:  # it has ended meanwhile
                continue
            together[group] += size
            self._largest |= Counter({group: size})  # which keeps the larger
        self._peaks |= together
        self._samples.append((time.time(), sum(self._cpu.values())))
