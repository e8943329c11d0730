"""What was asked of which device, and what an error reply to it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.serverapp.exception import AggregationError

from dccl_flower.faults import KINDS, BadAnswer, named
from dccl_flower.flower.letters import Letter, Reply, speakers

# What Flower writes before the text of what a ClientApp raised, in a simulation and elsewhere.
PREFIX = re.compile(r"^(.*Message: |<class '[^']*'>:<')")
# What it writes where Ray has lost the process, and not the device failed in it.
OF_RAY = re.compile(r"^<class 'ray\.exceptions\.(\w+)'>")


class WorkerLost(AggregationError):
    """A process of the simulation in which devices take their turns is gone.

    Flower would go on asking it. Another attempt, with other processes, may fare better.
    """


@dataclass
class Errand:
    """What was asked of which device, by messages of one type; ``given`` is the caller's config.

    ``replies`` are those that came, by each device that they speak for.
    """

    letters: Mapping[int, Letter]
    kind: str
    given: Mapping[str, Any]
    messages: list[Message] = field(default_factory=list)
    replies: dict[int, Reply] = field(default_factory=dict)
    _asked: dict[str, list[int]] = field(default_factory=dict, init=False)

    def devices_asked(self, reply: Message) -> list[int]:
        """Return the devices that the message spoke to which a reply is to; [] for none of ours."""
        if not self._asked:  # once they are sent, for they have no ids before
            self._asked = {m.metadata.message_id: _devices(m) for m in self.messages}
        return self._asked.get(reply.metadata.reply_to_message_id, [])

    def devices_claimed(self, reply: Message) -> list[int]:
        """Return those devices that were asked which a reply says it is of."""
        try:
            told = speakers(reply.content)
        except ValueError:
            return []
        return [device for device in told if device in self.letters]

    def send_again(self, messages: Iterable[Message]) -> None:
        """Take note of messages beside the first ones."""
        self.messages = [*self.messages, *messages]
        self._asked = {}


def reported(reason: str | None, who: list[int]) -> BadAnswer:
    """Return what an error reply says of the devices that it is of."""
    text = _last_line(reason)
    kind, _, line = text.partition(": ")
    if kind not in KINDS or not line:
        kind, line = "raised", text
    return BadAnswer(kind, line if line.startswith("device ") else f"{named(who)}: {line}")


def check_worker(reason: str | None, who: list[int]) -> None:
    """Raise WorkerLost where an error reply says that the process of its devices has died."""
    if found := OF_RAY.match(reason or ""):
        line = f"the worker of {named(who)} is gone; it was killed, by hand or for want of memory"
        raise WorkerLost(f"{line} ({found[1]})")


def _devices(message: Message) -> list[int]:
    config: dict[str, Any] = dict(message.content["config"])
    return list(config["devices"]) if "devices" in config else [config["device"]]


def _last_line(reason: str | None) -> str:
    """Return the line of an error reply that names the cause; tracebacks stand above it."""
    lines = (reason or "").strip().splitlines() or [""]
    return PREFIX.sub("", lines[-1]).rstrip("'\">") or "no reason given"
