"""Carry asks to logical devices and answers back: who lacks what, who answered, how much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError

from dccl_flower.codecs import Codec, State
from dccl_flower.engine import once_each
from dccl_flower.faults import BadAnswer, Fault, in_words, named
from dccl_flower.fleet.judge import Judge, RoundStopped
from dccl_flower.flower.errand import Errand, check_worker, reported
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.letters import EXCHANGE, ROUND, Letter, Reply, speakers
from dccl_flower.flower.nodes import Met, by_node, meet_nodes
from dccl_flower.method import Ask
from dccl_flower.turns import Plain

TRAIN, EVALUATE = "train", "evaluate"
HOLDS = "holds-"
Known = tuple[State, ArrayRecord]


@dataclass
class Courier:
    """Messages to devices; what a device keeps rides along only where it lacks it.

    A message of type ``train`` speaks to up to ``devices_per_node`` devices of a node, any other
    to one. ``common`` is what all of them say. Nodes are waited for before the first is sent.
    ``held`` is, by device, what it held when it last answered.
    """

    grid: Grid
    num_devices: int
    ledger: Ledger
    codec: Codec
    judge: Judge
    devices_per_node: int = 1
    num_nodes: int | None = None
    common: Mapping[str, Plain] = field(default_factory=dict)
    asks_again: bool = True  # those that have lost what they kept
    held: dict[int, set[str]] = field(default_factory=dict)

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
        self, asks: Mapping[int, Ask], turn: tuple[int, int], known: Known | None = None
    ) -> dict[int, Letter]:
        """Return each device's letter; asks that are one object share one.

        ``turn`` is the round and the exchange in it. ``known`` is a state whose arrays need not be
        made again.
        """
        common: dict[str, Plain] = {ROUND: turn[0], EXCHANGE: turn[1], **self.common}

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
            self.held.pop(device, None)  # until it answers
        errand.messages = self._messages(errand, lacking)
        return errand

    def read(self, errand: Errand, replies: Iterable[Message]) -> list[Reply]:
        """Check the replies to an errand, count them and return them in the order of device ids.

        Devices that have lost what they kept are sent it, and asked once more; so are those that
        gave no good answer, where the policy says so. Raises AggregationError where it says to
        stop.
        """
        letters, answered, judge = errand.letters, errand.replies, self.judge
        server_round = next(iter(letters.values())).config[ROUND]
        faults = self._faults(errand, replies, letters)
        again = judge.to_ask_again(faults, answered)
        devices = sorted({d for fault in again for d in fault.devices} - answered.keys())
        if devices and self.asks_again:
            judge.note(server_round, again, "asked again")
            faults = [fault for fault in faults if fault not in again]
            messages = self._messages(errand, {d: list(letters[d].ask.keep) for d in devices})
            errand.send_again(messages)
            faults += self._faults(errand, self._exchange(messages), devices)
        try:
            judge.settle(server_round, faults, len(answered), len(letters))
        except RoundStopped as error:
            raise AggregationError(str(error)) from error
        for device in answered:
            self.held[device] = set(letters[device].digests.values())
        return [reply for device, reply in sorted(answered.items()) if device == reply.devices[0]]

    def ask(self, letters: Mapping[int, Letter], kind: str) -> list[Reply]:
        """Send messages, wait for the replies and return them as :meth:`read` does."""
        errand = self.send(letters, kind)
        return self.read(errand, self._exchange(errand.messages))

    def count_unanswered(self, letters: Mapping[int, Letter]) -> None:
        """Count what devices are sent whose answers do not come in time."""
        for device, letter in letters.items():
            parcels = [] if device in self.held else list(letter.ask.keep)
            blobs = ConfigRecord(letter.blobs(parcels))
            content = RecordDict({"arrays": letter.arrays, "config": blobs})
            self.ledger.sent(content, letter.ask.sends)

    def _exchange(self, messages: Sequence[Message]) -> Iterable[Message]:
        return self.grid.send_and_receive(messages, timeout=self.judge.policy.timeout)

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
            # No node begins what nobody waits for any more.
            patience = self.judge.policy.timeout
            message = Message(content, dst_node_id=node, message_type=errand.kind, ttl=patience)
            messages.append(message)
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

    def _faults(
        self, errand: Errand, replies: Iterable[Message], asked: Iterable[int]
    ) -> list[Fault]:
        """Note what came, and return what went wrong, with those ``asked`` that did not answer."""
        # Good answers first: an error that says of which node it is, and no more, is of the others.
        in_turn = sorted(replies, key=Message.has_error)
        faults = [fault for message in in_turn if (fault := self._take(errand, message))]
        heard = {device for fault in faults for device in fault.devices}.union(errand.replies)
        if silent := sorted(set(asked) - heard):
            line = f"{named(silent)} did not answer within {self.judge.policy.timeout:g} seconds"
            faults.append(Fault("silent", line, silent))
        return faults

    def _take(self, errand: Errand, message: Message) -> Fault | None:
        """Note what a message brought, or return what is wrong with it."""
        node, asked = message.metadata.src_node_id, errand.devices_asked(message)
        if message.has_error():
            if node not in self.nodes:  # Flower itself says that no answer will come
                return None
            of_node = by_node(self.nodes, errand.letters.keys() - errand.replies)
            devices = sorted(asked or of_node.get(node, []))
            check_worker(message.error.reason, devices)
            error = reported(message.error.reason, devices)
            return Fault(error.kind, error.line, devices, error)
        try:
            self._note(errand, message.content, asked)
        except BadAnswer as error:
            devices = asked or errand.devices_claimed(message)
            return Fault(error.kind, error.line, devices, error)
        except Exception as error:  # whatever comes from outside must not end the run
            devices = asked or errand.devices_claimed(message)
            line = f"{named(devices)} replied with what cannot be read: {in_words(error)}"
            return Fault("unfit", line, devices, error)
        return None

    def _note(self, errand: Errand, content: RecordDict, asked: Sequence[int]) -> None:
        devices = speakers(content)
        if strangers := [device for device in devices if device not in errand.letters]:
            raise BadAnswer("stranger", f"device {strangers[0]} answered without being asked")
        if again := errand.replies.keys() & devices:
            raise BadAnswer("twice", f"device {min(again)} answered twice")
        if asked and sorted(devices) != sorted(asked):
            line = f"{named(devices)} answered what {named(asked)} was asked"
            raise BadAnswer("stranger", line)
        letter = errand.letters[devices[0]]
        reply = letter.read_scores(content) if errand.kind == EVALUATE else letter.read(content)
        self.judge.check(letter.ask, reply.answer, reply.counts, named(devices))
        self.ledger.received(content, letter.ask.brings, reply.merged_bytes)
        errand.replies.update(dict.fromkeys(devices, reply))
        self.judge.note_renewed(letter.config[ROUND], reply.renewed)

    def _lacking(self, letters: Mapping[int, Letter]) -> dict[int, list[str]]:
        """Ask each node, by hash, what its devices hold; return what each device lacks.

        Those that answered last time are not asked: their failure would tell.
        """
        lacking: dict[int, list[str]] = {device: [] for device in letters}
        unknown: dict[tuple[str, ...], list[int]] = {}
        for device, letter in letters.items():
            wanted = tuple(letter.digests.values())
            if not self.held.get(device, set()).issuperset(wanted):
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
            node = reply.metadata.src_node_id
            if reply.has_error() or node not in asked:
                continue
            self.ledger.received(reply.content)
            ids, told = asked[node], _holdings(reply.content)
            if all(len(told.get(name, ())) == len(ids) for name in letter.ask.keep):
                for place, device in enumerate(ids):
                    yield device, [name for name in letter.ask.keep if not told[name][place]]


def _holdings(content: RecordDict) -> dict[str, list[Any]]:
    """Return what a node says that its devices hold, by name; nothing where it says so oddly."""
    told = list(content.config_records.values())
    items = told[0].items() if len(told) == 1 else ()
    return {key.removeprefix(HOLDS): held for key, held in items if isinstance(held, list)}
