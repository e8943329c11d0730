"""The virtual clock: when devices would answer, and when a round would end. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dccl_flower.fleet.profiles import Tier


@dataclass(frozen=True)
class Work:
    """What a turn takes: bytes to and from the device, and the operations of its training."""

    down_bytes: int
    flops: float
    up_bytes: int


@dataclass(frozen=True)
class Turn:
    """A device's turn in seconds; ``gone_after`` so many from its start it is gone, or never."""

    device: int
    download: float
    training: float
    upload: float
    gone_after: float | None = None

    @property
    def arrival(self) -> float:
        """Seconds from the round's start until the answer is in, if the device stays."""
        return self.download + self.training + self.upload


@dataclass(frozen=True)
class Cohort:
    """The devices whose answers count in a round, and how long it took by the virtual clock.

    ``late`` and ``gone`` were asked too: they answer after the round's end, or never.
    """

    devices: list[int]
    virtual_seconds: float | None = None
    late: Sequence[int] = ()
    gone: Sequence[int] = ()

    @property
    def asked(self) -> list[int]:
        """All who were asked, in order."""
        return sorted([*self.devices, *self.late, *self.gone])


def turn(device: int, tier: Tier, work: Work, drop_share: float | None = None) -> Turn:
    """Return the turn of a device that is gone after ``drop_share`` of it, or stays.

    Raises ValueError for negative work or a share that is not from 0 to 1.
    """
    if min(work.down_bytes, work.flops, work.up_bytes) < 0:
        raise ValueError(f"{work}: must not be negative")
    if drop_share is not None and not 0 <= drop_share <= 1:
        raise ValueError(f"drop_share={drop_share}: must lie between 0 and 1")
    download = 8 * work.down_bytes / (1e6 * tier.down_mbps)
    training = work.flops / tier.flops
    upload = 8 * work.up_bytes / (1e6 * tier.up_mbps)
    gone_after = None if drop_share is None else drop_share * (download + training + upload)
    return Turn(device, download, training, upload, gone_after)


def close_round(turns: Sequence[Turn], wanted: int, deadline: float | None) -> Cohort:
    """Return the cohort of a round that takes the first ``wanted`` answers.

    It ends when these are in, when nobody is left to wait for, or at the deadline, whichever comes
    first; the server learns at once that a device is gone. Of answers that come in at the same
    time the lower device number counts first. Whoever is still at work at the end is late, and so
    is a device that would have gone after it.

    Raises ValueError where ``wanted`` is below 1, the deadline is not positive and finite, or a
    device has two turns.
    """
    if wanted < 1:
        raise ValueError(f"wanted={wanted}: must be at least 1")
    if deadline is not None and not 0 < deadline < math.inf:
        raise ValueError(f"deadline={deadline}: must be positive and finite")
    if len({t.device for t in turns}) < len(turns):
        raise ValueError("a device has two turns in one round")
    answers = sorted((t.arrival, t.device) for t in turns if t.gone_after is None)
    departures = [(t.gone_after, t.device) for t in turns if t.gone_after is not None]
    if len(answers) >= wanted:
        seconds = answers[wanted - 1][0]
    else:
        seconds = max((when for when, _ in answers + departures), default=0.0)
    if deadline is not None:
        seconds = min(seconds, deadline)
    arrived = {device for when, device in answers[:wanted] if when <= seconds}
    gone = {device for when, device in departures if when <= seconds}
    late = {t.device for t in turns} - arrived - gone
    return Cohort(sorted(arrived), seconds, sorted(late), sorted(gone))


def over_sampled(cohort: int, factor: float) -> int:
    """Return how many devices to ask so that ``cohort`` may answer: ``factor`` times as many.

    Rounded up, at least ``cohort``. Raises ValueError for a factor that is not finite.
    """
    # As it is written in decimals: 10 times the float 1.1 lies above 11 and would round up to 12.
    return max(cohort, math.ceil(cohort * Fraction(str(factor))))
