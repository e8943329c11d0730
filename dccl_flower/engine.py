"""What all engines share: a round on its way, the bytes of its messages, and what is told of it."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dccl_flower.codecs import State
from dccl_flower.fleet.clock import Cohort
from dccl_flower.method import Answer, Ask, Round

T = TypeVar("T")


@dataclass(frozen=True)
class RoundFacts:
    """Who answered, what went over the wire (bytes), and what the virtual clock says.

    ``late`` and ``gone`` devices were asked and did not answer in time. ``worker_peak_mb`` is the
    largest resident size of a process that trained, 0 where none told. ``faults`` counts what went
    wrong, by kind.
    """

    devices: Sequence[int] = ()
    bytes_down: int = 0
    bytes_up: int = 0
    virtual_seconds: float | None = None
    late: Sequence[int] = ()
    gone: Sequence[int] = ()
    worker_peak_mb: float = 0.0
    faults: Mapping[str, int] = field(default_factory=dict)


AfterRound = Callable[[int, State, RoundFacts], object]


class OpenRound:
    """A round on its way: ``asks`` wait for answers; once they are None, ``state`` is the next."""

    asks: Mapping[int, Ask] | None
    state: State

    def __init__(self, steps: Round) -> None:
        self._steps = steps
        self.answer(None)

    def answer(self, answers: Mapping[int, Answer] | None) -> None:
        """Hand over answers, by device; None begins the round."""
        try:
            self.asks = self._steps.send(answers)  # type: ignore[arg-type]
        except StopIteration as end:
            self.asks, self.state = None, end.value


class Traffic:
    """Bytes by kind, which is what is sent and its direction, as ``mimic_down``."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._at_round_start: Counter[str] = Counter()

    def count(self, kind: str, size: int) -> None:
        """Add to a kind's bytes."""
        if size:
            self.totals[kind] += size

    def go_on(self, totals: Mapping[str, int]) -> None:
        """Count on from the totals of complete rounds."""
        self.totals = Counter(totals)
        self._at_round_start = Counter(totals)

    def close_round(self) -> tuple[int, int]:
        """Return bytes down and up since the last call."""
        spent = self.totals - self._at_round_start
        self._at_round_start = Counter(self.totals)
        down = sum(size for kind, size in spent.items() if kind.endswith("_down"))
        return down, sum(size for kind, size in spent.items() if kind.endswith("_up"))

    def facts(self, cohort: Cohort, answered: Sequence[int], peak_mb: float) -> RoundFacts:
        """Return what there is to tell of a round, and close it."""
        clock, (down, up) = cohort.virtual_seconds, self.close_round()
        return RoundFacts(answered, down, up, clock, cohort.late, cohort.gone, peak_mb)


def once_each(asks: Mapping[int, Ask], make: Callable[[Ask], T]) -> dict[int, T]:
    """Return what is made of each device's ask, made once of those that are one object."""
    made: dict[int, T] = {}
    for ask in asks.values():
        if id(ask) not in made:
            made[id(ask)] = make(ask)
    return {device: made[id(ask)] for device, ask in asks.items()}


def peak_rss_mb() -> float:
    """Return the largest resident size of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
