"""Carry records between the server and logical devices: who lacks what, who answered, how much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError

from dccl_flower.device_store import LACKS, sha256
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.nodes import NodeDirectory
from dccl_flower.flower.replies import Reader, Reply, speakers


@dataclass
class Errand:
    """What was asked of devices: what each is sent, with which config and message type.

    ``is_train``: replies are trained copies of what was sent, and messages may be shared.
    ``answers`` reads the replies where they are not of the kind that was sent.
    """

    readers: dict[int, Reader]
    config: dict[str, Any]
    kind: str
    messages: list[Message] = field(default_factory=list)
    answers: Reader | None = None

    @property
    def is_train(self) -> bool:
        """Tell whether devices train."""
        return self.kind == "train"


class Courier:
    """Messages to devices; blobs ride along only where a device lacks them.

    ``min_replies`` is the share of the devices asked that must answer without error. A message of
    type ``train`` speaks to up to ``devices_per_node`` devices of a node, any other to one.
    """

    def __init__(
        self,
        grid: Grid,
        directory: NodeDirectory,
        ledger: Ledger,
        blobs: dict[str, bytes],
        min_replies: float,
        timeout: float,
        codec: str = "fp32",
        devices_per_node: int = 1,
    ) -> None:
        self._grid = grid
        self._directory = directory
        self._ledger = ledger
        self._blobs = blobs
        self._digests = {f"{kind}-sha256": sha256(blob) for kind, blob in blobs.items()}
        self._min_replies = min_replies
        self._timeout = timeout
        self._codec = codec
        self._devices_per_node = devices_per_node
        self._holders: set[int] = set()

    def send(self, readers: dict[int, Reader], config: dict[str, Any], kind: str) -> Errand:
        """Return an errand whose messages send each device the state of its reader."""
        errand = Errand(readers, {**config, **self._digests, "codec": self._codec}, kind)
        lacking = self._lacking(list(readers))
        self._holders -= set(readers)  # until they answer
        errand.messages = self._messages(errand, lacking)
        return errand

    def read(self, errand: Errand, replies: Iterable[Message]) -> list[Reply]:
        """Check the replies to an errand, count them and return them in the order of device ids.

        Devices that have lost a blob since they last answered are sent it, and asked once more.
        Raises AggregationError where too few devices answered, or one sent what does not fit.
        """
        good: dict[int, Reply] = {}
        errors = self._take(errand, replies, good)
        forgetful = {node for node, reason in errors if LACKS in reason}
        silent = errand.readers.keys() - _answered(good)
        lost = [d for d in sorted(silent) if self._directory.node_of(d) in forgetful]
        if lost:
            again = self._messages(errand, {device: list(self._blobs) for device in lost})
            late = self._grid.send_and_receive(again, timeout=self._timeout)
            others = [error for error in errors if LACKS not in error[1]]
            errors = others + self._take(errand, late, good)
        answered = _answered(good)
        if not good or len(answered) < self._min_replies * len(errand.readers):
            cause = f"; first error: {errors[0][1]}" if errors else ""
            count = f"{len(answered)} of {len(errand.readers)} devices answered"
            raise AggregationError(f"{count}{cause}")
        self._holders |= answered
        return [good[device] for device in sorted(good)]

    def ask(
        self, readers: dict[int, Reader], config: dict[str, Any], answers: Reader
    ) -> list[Reply]:
        """Send ``train.head`` messages and return the replies, all read by ``answers``."""
        errand = self.send(readers, config, "train.head")
        errand.answers = answers
        replies = self._grid.send_and_receive(errand.messages, timeout=self._timeout)
        return self.read(errand, replies)

    def count_unanswered(self, readers: dict[int, Reader]) -> None:
        """Count what devices are sent whose answers do not come in time."""
        for device, reader in readers.items():
            blobs = {} if device in self._holders else self._blobs
            content = RecordDict({"arrays": reader.sent, "config": ConfigRecord(dict(blobs))})
            self._ledger.sent(content)

    def _messages(self, errand: Errand, lacking: dict[int, list[str]]) -> list[Message]:
        """Return the messages to the devices that ``lacking`` names, blobs included."""
        messages = []
        for node, together in self._groups(errand, list(lacking)):
            missing = {
                blob: sum(blob in lacking[device] for device in together) for blob in self._blobs
            }
            blobs = {blob: self._blobs[blob] for blob, count in missing.items() if count}
            alone = self._devices_per_node == 1 or not errand.is_train
            who = {"device": together[0]} if alone else {"devices": together}
            reader = errand.readers[together[0]]
            config = ConfigRecord({**errand.config, **reader.config, **who, **blobs})
            content = RecordDict({"arrays": reader.sent, "config": config})
            self._ledger.sent(content, len(together), missing)
            messages.append(Message(content, dst_node_id=node, message_type=errand.kind))
        return messages

    def _groups(self, errand: Errand, devices: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Return nodes and the devices that share a message: of one node and sent the same."""
        size = self._devices_per_node if errand.is_train else 1
        groups = []
        for node, ids in self._directory.by_node(devices).items():
            alike: dict[int, list[int]] = {}
            for device in ids:
                alike.setdefault(id(errand.readers[device]), []).append(device)
            for same in alike.values():
                groups += [(node, same[at : at + size]) for at in range(0, len(same), size)]
        return groups

    def _take(
        self, errand: Errand, replies: Iterable[Message], good: dict[int, Reply]
    ) -> list[tuple[int, str]]:
        """Read replies into ``good``, by first device; return failed nodes with their reasons."""
        errors: list[tuple[int, str]] = []
        answered = _answered(good)
        for message in replies:
            if message.has_error():
                errors.append((message.metadata.src_node_id, _last_line(message.error.reason)))
                continue
            reply = self._reply(errand, message.content)
            self._ledger.received(
                message.content, "co_up" if errand.is_train else "other_up", reply.merged_bytes
            )
            if again := answered.intersection(reply.devices):
                raise AggregationError(f"device {min(again)} answered twice")
            answered.update(reply.devices)
            good[reply.devices[0]] = reply
        return errors

    def _reply(self, errand: Errand, content: RecordDict) -> Reply:
        devices = speakers(content)
        if strangers := [device for device in devices if device not in errand.readers]:
            raise AggregationError(f"device {strangers[0]} answered without being asked")
        try:
            return (errand.answers or errand.readers[devices[0]]).read(content)
        except ValueError as error:
            raise AggregationError(str(error)) from error

    def _lacking(self, devices: Sequence[int]) -> dict[int, list[str]]:
        """Ask each node, by hash, which blobs its devices hold; return what each device lacks.

        Those that answered last time are not asked: their failure would tell.
        """
        unknown = [device for device in devices if device not in self._holders]
        # A node that does not answer is sent everything: the round's own policy judges it.
        lacking = {d: [] if d in self._holders else list(self._blobs) for d in devices}
        by_node = self._directory.by_node(unknown)
        messages = []
        for node, ids in by_node.items():
            content = RecordDict({"config": ConfigRecord({**self._digests, "devices": ids})})
            self._ledger.sent(content)
            messages.append(Message(content, dst_node_id=node, message_type="query.holds"))
        answers = self._grid.send_and_receive(messages, timeout=self._timeout) if messages else []
        for reply in answers:
            if reply.has_error():
                continue
            self._ledger.received(reply.content)
            (held,) = reply.content.config_records.values()
            for place, device in enumerate(by_node[reply.metadata.src_node_id]):
                lacking[device] = [
                    blob
                    for blob in self._blobs
                    if not held[f"holds-{blob}"][place]  # type: ignore[index]
                ]
        return lacking


def _answered(good: dict[int, Reply]) -> set[int]:
    return {device for reply in good.values() for device in reply.devices}


def _last_line(reason: str | None) -> str:
    """Return the line of an error reply that names the cause; tracebacks stand above it."""
    return (reason or "no reason given").strip().splitlines()[-1].rstrip("'\">")
