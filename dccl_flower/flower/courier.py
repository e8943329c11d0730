"""Carry asks to logical devices and answers back: who lacks what, who answered, how much."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError

from dccl_flower.codecs import Codec, State
from dccl_flower.device_store import LACKS
from dccl_flower.fleet.roster import FaultPolicy
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.letters import Letter, Reply, speakers
from dccl_flower.flower.nodes import NodeDirectory
from dccl_flower.method import Ask

TRAIN = "train"
logger = logging.getLogger("dccl_flower")


@dataclass
class Errand:
    """What was asked of which device, by messages of one type; ``given`` is the caller's config."""

    letters: Mapping[int, Letter]
    kind: str
    given: Mapping[str, Any]
    messages: list[Message] = field(default_factory=list)


class Fault(NamedTuple):
    """Why no good answer came from a node."""

    node: int
    reason: str


class Courier:
    """Messages to devices; what a device keeps rides along only where it lacks it.

    A message of type ``train`` speaks to up to ``devices_per_node`` devices of a node, any other
    to one.
    """

    def __init__(
        self,
        grid: Grid,
        directory: NodeDirectory,
        ledger: Ledger,
        codec: Codec,
        policy: FaultPolicy,
        devices_per_node: int = 1,
    ) -> None:
        self._grid = grid
        self._directory = directory
        self._ledger = ledger
        self._codec = codec
        self._policy = policy
        self._devices_per_node = devices_per_node
        self._held: dict[int, set[str]] = {}  # by device, what it held when it last answered

    def letters(
        self,
        asks: Mapping[int, Ask],
        common: Mapping[str, Any],
        known: tuple[State, ArrayRecord] | None = None,
    ) -> dict[int, Letter]:
        """Return each device's letter; asks that are one object share one.

        ``known`` is a state whose arrays need not be made again.
        """
        made: dict[int, Letter] = {}
        for ask in asks.values():
            if id(ask) not in made:
                is_known = known is not None and known[0] is ask.state and self._codec.is_exact
                arrays = known[1] if known is not None and is_known else None
                made[id(ask)] = Letter(ask, self._codec, common, arrays)
        return {device: made[id(ask)] for device, ask in asks.items()}

    def send(
        self, letters: Mapping[int, Letter], kind: str, given: Mapping[str, Any] | None = None
    ) -> Errand:
        """Return an errand whose messages bring each device its letter.

        Raises ValueError where the caller's config sets what a letter says itself.
        """
        errand = Errand(letters, kind, given or {})
        for letter in set(letters.values()):
            if clash := letter.reserved.intersection(errand.given):
                raise ValueError(
                    f"train_config: {min(clash)!r} is set by the strategy: leave it out"
                )
        lacking = self._lacking(letters)
        for device in letters:
            self._held.pop(device, None)  # until it answers
        errand.messages = self._messages(errand, lacking)
        return errand

    def read(self, errand: Errand, replies: Iterable[Message]) -> list[Reply]:
        """Check the replies to an errand, count them and return them in the order of device ids.

        Devices that have lost what they kept are sent it, and asked once more. Raises
        AggregationError where the policy says to stop.
        """
        good: dict[int, Reply] = {}
        faults = self._take(errand, replies, good)
        if forgetful := {fault.node for fault in faults if LACKS in fault.reason}:
            silent = sorted(errand.letters.keys() - _answered(good))
            lost = [device for device in silent if self._directory.node_of(device) in forgetful]
            again = self._messages(errand, {d: list(errand.letters[d].ask.keep) for d in lost})
            late = self._grid.send_and_receive(again, timeout=self._policy.timeout)
            faults = [fault for fault in faults if LACKS not in fault.reason]
            faults += self._take(errand, late, good)
        answered, asked = len(_answered(good)), len(errand.letters)
        if not self._policy.is_enough(answered, asked):
            cause = f"; first error: {faults[0].reason}" if faults else ""
            raise AggregationError(f"{answered} of {asked} devices answered{cause}")
        for fault in faults:
            logger.warning("a round goes on without an answer: %s", fault.reason)
        for device in _answered(good):
            self._held[device] = set(errand.letters[device].digests.values())
        return [good[device] for device in sorted(good)]

    def ask(self, letters: Mapping[int, Letter], kind: str) -> list[Reply]:
        """Send messages, wait for the replies and return them as :meth:`read` does."""
        errand = self.send(letters, kind)
        replies = self._grid.send_and_receive(errand.messages, timeout=self._policy.timeout)
        return self.read(errand, replies)

    def count_unanswered(self, letters: Mapping[int, Letter]) -> None:
        """Count what devices are sent whose answers do not come in time."""
        for device, letter in letters.items():
            parcels = {} if device in self._held else letter.ask.keep
            blobs = ConfigRecord({name: parcel.blob() for name, parcel in parcels.items()})
            content = RecordDict({"arrays": letter.arrays, "config": blobs})
            self._ledger.sent(content, letter.ask.sends)

    def _messages(self, errand: Errand, lacking: Mapping[int, Sequence[str]]) -> list[Message]:
        """Return the messages to the devices that ``lacking`` names, what they lack included."""
        messages = []
        is_shared = self._devices_per_node != 1 and errand.kind == TRAIN
        for node, together in self._groups(errand, list(lacking), is_shared):
            letter = errand.letters[together[0]]
            keep = letter.ask.keep
            missing = {name: sum(name in lacking[device] for device in together) for name in keep}
            parcels = [name for name, count in missing.items() if count]
            content = letter.content(together, is_shared, parcels, errand.given)
            self._ledger.sent(content, letter.ask.sends, len(together), missing)
            messages.append(Message(content, dst_node_id=node, message_type=errand.kind))
        return messages

    def _groups(
        self, errand: Errand, devices: Sequence[int], is_shared: bool
    ) -> list[tuple[int, list[int]]]:
        """Return nodes and the devices that share a message: of one node and sent the same."""
        size = self._devices_per_node if is_shared else 1
        groups = []
        for node, ids in self._directory.by_node(devices).items():
            alike: dict[int, list[int]] = {}
            for device in ids:
                alike.setdefault(id(errand.letters[device]), []).append(device)
            for same in alike.values():
                groups += [(node, same[at : at + size]) for at in range(0, len(same), size)]
        return groups

    def _take(
        self, errand: Errand, replies: Iterable[Message], good: dict[int, Reply]
    ) -> list[Fault]:
        """Read replies into ``good``, by first device; return what went wrong, and where."""
        faults: list[Fault] = []
        for message in replies:
            node = message.metadata.src_node_id
            if message.has_error():
                faults.append(Fault(node, _last_line(message.error.reason)))
                continue
            try:
                reply = self._reply(errand, message.content, good)
            except ValueError as error:
                faults.append(Fault(node, str(error)))
                continue
            good[reply.devices[0]] = reply
        return faults

    def _reply(self, errand: Errand, content: RecordDict, good: dict[int, Reply]) -> Reply:
        devices = speakers(content)
        if strangers := [device for device in devices if device not in errand.letters]:
            raise ValueError(f"device {strangers[0]} answered without being asked")
        if again := _answered(good).intersection(devices):
            raise ValueError(f"device {min(again)} answered twice")
        letter = errand.letters[devices[0]]
        reply = letter.read(content)
        self._ledger.received(content, letter.ask.brings, reply.merged_bytes)
        return reply

    def _lacking(self, letters: Mapping[int, Letter]) -> dict[int, list[str]]:
        """Ask each node, by hash, what its devices hold; return what each device lacks.

        Those that answered last time are not asked: their failure would tell.
        """
        # A node that does not answer is sent everything: the round's own policy judges it.
        lacking = {device: list(letter.ask.keep) for device, letter in letters.items()}
        unknown: dict[tuple[str, ...], list[int]] = {}
        for device, letter in letters.items():
            wanted = tuple(letter.digests.values())
            if self._held.get(device, set()).issuperset(wanted):
                lacking[device] = []
            else:
                unknown.setdefault(wanted, []).append(device)
        for devices in unknown.values():
            self._ask_what_they_hold(letters[devices[0]], devices, lacking)
        return lacking

    def _ask_what_they_hold(
        self, letter: Letter, devices: Sequence[int], lacking: dict[int, list[str]]
    ) -> None:
        by_node = self._directory.by_node(devices)
        messages = []
        for node, ids in by_node.items():
            content = RecordDict({"config": ConfigRecord({**letter.digests, "devices": ids})})
            self._ledger.sent(content)
            messages.append(Message(content, dst_node_id=node, message_type="query.holds"))
        for reply in self._grid.send_and_receive(messages, timeout=self._policy.timeout):
            if reply.has_error():
                continue
            self._ledger.received(reply.content)
            (held,) = reply.content.config_records.values()
            for place, device in enumerate(by_node[reply.metadata.src_node_id]):
                holds: dict[str, Any] = {name: held[f"holds-{name}"] for name in letter.ask.keep}
                lacking[device] = [name for name, each in holds.items() if not each[place]]


def _answered(good: Mapping[int, Reply]) -> set[int]:
    return {device for reply in good.values() for device in reply.devices}


def _last_line(reason: str | None) -> str:
    """Return the line of an error reply that names the cause; tracebacks stand above it."""
    return (reason or "no reason given").strip().splitlines()[-1].rstrip("'\">")
