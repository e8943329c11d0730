"""Carry asks to logical devices and answers back: who lacks what, who answered, how much."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError

from dccl_flower.codecs import Codec, State
from dccl_flower.device_store import LACKS
from dccl_flower.engine import once_each
from dccl_flower.fleet.roster import FaultPolicy
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.letters import ROUND, Letter, Reply, speakers
from dccl_flower.flower.nodes import Met, by_node, meet_nodes, node_of
from dccl_flower.method import Ask
from dccl_flower.turns import Plain

TRAIN = "train"
Known = tuple[State, ArrayRecord]
logger = logging.getLogger("dccl_flower")


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


class Fault(NamedTuple):
    """Why no good answer came from a node."""

    node: int
    reason: str


@dataclass
class Courier:
    """Messages to devices; what a device keeps rides along only where it lacks it.

    A message of type ``train`` speaks to up to ``devices_per_node`` devices of a node, any other
    to one. ``common`` is what all of them say. Nodes are waited for before the first is sent.
    """

    grid: Grid
    num_devices: int
    ledger: Ledger
    codec: Codec
    policy: FaultPolicy
    devices_per_node: int = 1
    num_nodes: int | None = None
    common: Mapping[str, Plain] = field(default_factory=dict)
    asks_again: bool = True  # those that have lost what they kept
    # By device, what it held when it last answered.
    _held: dict[int, set[str]] = field(default_factory=dict, init=False)

    @property
    def nodes(self) -> list[int]:
        """The nodes that play the devices."""
        return self._met.nodes

    @property
    def mods_are_there(self) -> bool:
        """Tell whether mods change what some of the nodes answer."""
        return self._met.mods_are_there

    @cached_property
    def _met(self) -> Met:
        return meet_nodes(self.grid, self.num_devices, self.ledger, self.num_nodes)

    def letters(
        self, asks: Mapping[int, Ask], server_round: int, known: Known | None = None
    ) -> dict[int, Letter]:
        """Return each device's letter; asks that are one object share one.

        ``known`` is a state whose arrays need not be made again.
        """
        common: dict[str, Plain] = {ROUND: server_round, **self.common}

        def letter(ask: Ask) -> Letter:
            is_known = known is not None and known[0] is ask.state and self.codec.is_exact
            return Letter(ask, self.codec, common, known[1] if known and is_known else None)

        return once_each(asks, letter)

    def send(
        self, letters: Mapping[int, Letter], kind: str, given: Mapping[str, Any] | None = None
    ) -> Errand:
        """Return an errand whose messages bring each device its letter.

        Raises ValueError where the caller's config sets what a letter says itself.
        """
        errand = Errand(letters, kind, given or {})
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
        letters, answered = errand.letters, errand.replies.keys()
        faults = self._take(errand, replies)
        forgetful = {fault.node for fault in faults if LACKS in fault.reason}
        if forgetful and self.asks_again:
            silent = sorted(letters.keys() - answered)
            lost = [device for device in silent if node_of(self.nodes, device) in forgetful]
            again = self._messages(errand, {d: list(letters[d].ask.keep) for d in lost})
            faults = [fault for fault in faults if LACKS not in fault.reason]
            faults += self._take(errand, self._exchange(again))
        if not self.policy.is_enough(len(answered), len(letters)):
            cause = f"; first error: {faults[0].reason}" if faults else ""
            count = f"{len(answered)} of {len(letters)} devices answered"
            raise AggregationError(f"{count}{cause}")
        for fault in faults:
            logger.warning("a round goes on without an answer: %s", fault.reason)
        for device in answered:
            self._held[device] = set(letters[device].digests.values())
        in_order = sorted(errand.replies.items())
        return [reply for device, reply in in_order if device == reply.devices[0]]

    def ask(self, letters: Mapping[int, Letter], kind: str) -> list[Reply]:
        """Send messages, wait for the replies and return them as :meth:`read` does."""
        errand = self.send(letters, kind)
        return self.read(errand, self._exchange(errand.messages))

    def count_unanswered(self, letters: Mapping[int, Letter]) -> None:
        """Count what devices are sent whose answers do not come in time."""
        for device, letter in letters.items():
            parcels = [] if device in self._held else list(letter.ask.keep)
            blobs = ConfigRecord(letter.blobs(parcels))
            content = RecordDict({"arrays": letter.arrays, "config": blobs})
            self.ledger.sent(content, letter.ask.sends)

    def _exchange(self, messages: Sequence[Message]) -> Iterable[Message]:
        return self.grid.send_and_receive(messages, timeout=self.policy.timeout)

    def _messages(self, errand: Errand, lacking: Mapping[int, Sequence[str]]) -> list[Message]:
        """Return the messages to the devices that ``lacking`` names, what they lack included."""
        messages = []
        is_shared = self.devices_per_node != 1 and errand.kind == TRAIN
        for node, together in self._groups(errand, lacking, is_shared):
            letter = errand.letters[together[0]]
            keep = letter.ask.keep
            missing = {name: sum(name in lacking[device] for device in together) for name in keep}
            parcels = [name for name, count in missing.items() if count]
            content = letter.content(together, is_shared, parcels, errand.given)
            self.ledger.sent(content, letter.ask.sends, len(together), missing)
            messages.append(Message(content, dst_node_id=node, message_type=errand.kind))
        return messages

    def _groups(
        self, errand: Errand, devices: Iterable[int], is_shared: bool
    ) -> list[tuple[int, list[int]]]:
        """Return nodes and the devices that share a message: of one node and sent the same."""
        size = self.devices_per_node if is_shared else 1
        groups = []
        for node, ids in by_node(self.nodes, devices).items():
            alike: dict[int, list[int]] = {}
            for device in ids:
                alike.setdefault(id(errand.letters[device]), []).append(device)
            for same in alike.values():
                groups += [(node, same[at : at + size]) for at in range(0, len(same), size)]
        return groups

    def _take(self, errand: Errand, replies: Iterable[Message]) -> list[Fault]:
        """Note what came, and return what went wrong, and where."""
        faults = []
        for message in replies:
            node = message.metadata.src_node_id
            if message.has_error():
                faults.append(Fault(node, _last_line(message.error.reason)))
                continue
            try:
                self._note(errand, message.content)
            except ValueError as error:
                faults.append(Fault(node, str(error)))
        return faults

    def _note(self, errand: Errand, content: RecordDict) -> None:
        devices = speakers(content)
        if strangers := [device for device in devices if device not in errand.letters]:
            raise ValueError(f"device {strangers[0]} answered without being asked")
        if again := errand.replies.keys() & devices:
            raise ValueError(f"device {min(again)} answered twice")
        letter = errand.letters[devices[0]]
        reply = letter.read(content)
        self.ledger.received(content, letter.ask.brings, reply.merged_bytes)
        errand.replies.update(dict.fromkeys(devices, reply))

    def _lacking(self, letters: Mapping[int, Letter]) -> dict[int, list[str]]:
        """Ask each node, by hash, what its devices hold; return what each device lacks.

        Those that answered last time are not asked: their failure would tell.
        """
        lacking: dict[int, list[str]] = {device: [] for device in letters}
        unknown: dict[tuple[str, ...], list[int]] = {}
        for device, letter in letters.items():
            wanted = tuple(letter.digests.values())
            if not self._held.get(device, set()).issuperset(wanted):
                # Whose node does not answer is sent everything: the round's policy judges it.
                lacking[device] = list(letter.ask.keep)
                unknown.setdefault(wanted, []).append(device)
        for devices in unknown.values():
            lacking.update(self._told_lacking(letters[devices[0]], devices))
        return lacking

    def _told_lacking(
        self, letter: Letter, devices: Sequence[int]
    ) -> Iterator[tuple[int, list[str]]]:
        asked = by_node(self.nodes, devices)
        messages = []
        for node, ids in asked.items():
            content = RecordDict({"config": ConfigRecord({**letter.digests, "devices": ids})})
            self.ledger.sent(content)
            messages.append(Message(content, dst_node_id=node, message_type="query.holds"))
        for reply in self._exchange(messages):
            if not reply.has_error():
                self.ledger.received(reply.content)
                (held,) = reply.content.config_records.values()
                told: dict[str, Any] = {name: held[f"holds-{name}"] for name in letter.ask.keep}
                for place, device in enumerate(asked[reply.metadata.src_node_id]):
                    yield device, [name for name, holds in told.items() if not holds[place]]


def _last_line(reason: str | None) -> str:
    """Return the line of an error reply that names the cause; tracebacks stand above it."""
    return (reason or "no reason given").strip().splitlines()[-1].rstrip("'\">")
