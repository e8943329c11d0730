"""What any engine tells of a round that is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dccl_flower.codecs import State


@dataclass(frozen=True)
class RoundFacts:
    """Who answered, what went over the wire (bytes), and what the virtual clock says.

    ``late`` and ``gone`` devices were asked and did not answer in time. ``worker_peak_mb`` is the
    largest resident size of a process that trained, 0 where none told.
    """

    devices: Sequence[int] = ()
    bytes_down: int = 0
    bytes_up: int = 0
    virtual_seconds: float | None = None
    late: Sequence[int] = ()
    gone: Sequence[int] = ()
    worker_peak_mb: float = 0.0


AfterRound = Callable[[int, State, RoundFacts], object]
