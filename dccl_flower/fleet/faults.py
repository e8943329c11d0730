"""What to do about devices that do not answer, or not well."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum


class RoundStopped(RuntimeError):
    """Too few devices answered; the message is one line for the user."""


class Verdict(Enum):
    """How a round goes on."""

    GO = "go"
    ASK_AGAIN = "ask again"
    STOP = "stop"


@dataclass(frozen=True)
class Fault:
    """Why no good answer came from a place; what it ``lost`` it can be sent again."""

    place: int
    reason: str
    lost: bool = False


@dataclass(frozen=True)
class FaultPolicy:
    """Go on where at least ``min_replies`` of those asked answered; wait ``timeout`` seconds."""

    min_replies: float = 1.0
    timeout: float = 3600.0

    def judge(
        self, asked: Collection[int], answered: Collection[int], faults: Sequence[Fault] = ()
    ) -> Verdict:
        """Return how a round goes on; devices that lost what they had been sent are asked again."""
        if any(fault.lost for fault in faults):
            return Verdict.ASK_AGAIN
        if answered and len(answered) >= self.min_replies * len(asked):
            return Verdict.GO
        return Verdict.STOP
