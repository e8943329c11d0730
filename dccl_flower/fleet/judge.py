"""Whether a round goes on without an answer: the fault policy, and what it has seen."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dccl_flower.config import BareRoundsConf, OnFailure
from dccl_flower.faults import BadAnswer, Fault, check_norm, check_values
from dccl_flower.method import Answer, Ask, Numbers

# A device may come to hold more samples from one turn to the next, but not so many times more.
MOST_GROWTH = 100
logger = logging.getLogger("dccl_flower")


class RoundStopped(RuntimeError):
    """A round cannot go on; the message is one line for the user."""


@dataclass(frozen=True)
class FaultPolicy:
    """What is done about a device without a good answer within ``timeout`` seconds.

    It is done without (``skip_device``), asked once more and then done without (``ask_again``), or
    the round stops (``stop``). A round goes on where at least ``min_replies`` of those asked
    answered. ``max_norm`` bounds how far an answer may lie from what was sent (L2), None does not.
    """

    min_replies: float = 1.0
    timeout: float = 3600.0
    on_failure: OnFailure = "skip_device"
    max_norm: float | None = None

    @classmethod
    def of(cls, rounds: BareRoundsConf) -> FaultPolicy:
        """Return the policy that a configuration asks for."""
        return cls(rounds.min_replies, rounds.timeout, rounds.on_failure, rounds.max_norm)

    def is_enough(self, answered: int, asked: int) -> bool:
        """Tell whether a round goes on with so many answers; never with none."""
        return answered > 0 and answered >= self.min_replies * asked


class Judge:
    """Looks at the answers of a run by a policy, and counts the faults of a round by kind."""

    def __init__(self, policy: FaultPolicy) -> None:
        self.policy = policy
        self._counts: Counter[str] = Counter()
        # By device and kind of turn, the samples that it told last.
        self._told: dict[tuple[int, str], int] = {}

    def check(self, ask: Ask, answer: Answer, counts: Mapping[int, int], who: str) -> None:
        """Take an answer with the samples of each device behind it.

        Raises BadAnswer for an update too large, for many times the samples told before, and for
        numbers beside it that were not asked for so.
        """
        for name, numbers in ask.wants.items():
            _check_numbers(name, numbers, answer.beside.get(name), who)
        if self.policy.max_norm is not None:
            base = ask.state if ask.like is None else {}
            check_norm(answer.state, base, self.policy.max_norm, who)
        turn = type(ask.turn).__name__
        for device, count in counts.items():
            before = self._told.get((device, turn), count)
            if count > MOST_GROWTH * before:
                line = f"device {device} replied with num-examples={count}, and {before} before"
                raise BadAnswer("samples", line)
        self._told |= {(device, turn): count for device, count in counts.items()}

    def to_ask_again(self, faults: Sequence[Fault], answered: Container[int]) -> list[Fault]:
        """Return the faults of devices without an answer that are asked once more.

        What was lost is sent again whatever the policy, but not where another fault ends the round.
        """
        open_ones = [f for f in faults if any(device not in answered for device in f.devices)]
        if self.policy.on_failure == "ask_again":
            return open_ones
        lost = [fault for fault in open_ones if fault.kind == "lost"]
        return [] if self.policy.on_failure == "stop" and len(lost) < len(faults) else lost

    def note(self, server_round: int, faults: Sequence[Fault], what: str) -> None:
        """Count faults, and log each in a line that ends with ``what`` is done about it."""
        self._count(faults)
        for fault in faults:
            logger.warning("round %d: %s; %s", server_round, fault, what)

    def note_renewed(self, server_round: int, devices: Sequence[int]) -> None:
        """Count devices that found damaged what they can make anew, and log each."""
        faults = [Fault("damaged", f"device {d} keeps a damaged file", [d]) for d in devices]
        self.note(server_round, faults, "it is made anew")

    def settle(self, server_round: int, faults: Sequence[Fault], answered: int, asked: int) -> None:
        """Let a round go on, with a line in the log for each fault.

        Raises RoundStopped, which names the first, where the policy says to stop.
        """
        policy = self.policy
        is_enough = policy.is_enough(answered, asked)
        if is_enough and not (faults and policy.on_failure == "stop"):
            self.note(server_round, faults, "the round goes on without")
            return
        self._count(faults)
        rule = f"min_replies={policy.min_replies:g} asks for more"
        if is_enough:
            rule = f"on_failure={policy.on_failure}"
        cause, more = "", ""
        if faults:
            cause = f"; {faults[0]}"
            rest = Counter(fault.kind for fault in faults[1:])
            more = "".join(f", {kind} {count} more" for kind, count in rest.items())
        stopped = f"round {server_round}: {answered} of {asked} devices answered, rounds.{rule}"
        raise RoundStopped(f"{stopped}{more}{cause}") from (faults[0].cause if faults else None)

    def close_round(self) -> dict[str, int]:
        """Return the faults since the last call, by kind."""
        counts, self._counts = dict(sorted(self._counts.items())), Counter()
        return counts

    def _count(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            self._counts[fault.kind] += max(1, len(fault.devices))


def _check_numbers(name: str, numbers: Numbers, told: Tensor | None, who: str) -> None:
    if told is None:
        raise BadAnswer("unfit", f"{who} did not tell its {name}")
    if numbers.count is not None and told.shape != (numbers.count,):
        asked = f"expected {numbers.count}"
        raise BadAnswer("unfit", f"{who} replied with {told.numel()} values of {name!r}, {asked}")
    flat = told.flatten()
    present = flat[: numbers.may_lack]
    check_values({name: torch.cat([present[~present.isnan()], flat[numbers.may_lack :]])}, who)
