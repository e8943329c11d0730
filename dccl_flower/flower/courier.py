"""Carry records between the server and logical devices: who lacks what, who answered, how much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError

from dccl_flower.device_store import sha256
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.nodes import NodeDirectory
from dccl_flower.flower.wire import check_state, to_state
from dccl_flower.learning.fusion import Copy, State


@dataclass(frozen=True)
class DeviceReply:
    """What one device sent back; a peak of 0 means that its client does not tell."""

    device: int
    copy: Copy
    peak_rss_mb: float
    content: RecordDict


class Courier:
    """One message a device and purpose; blobs ride along only where a device lacks them.

    ``min_replies`` is the share of the devices asked that must answer without error.
    """

    def __init__(
        self,
        grid: Grid,
        directory: NodeDirectory,
        ledger: Ledger,
        blobs: dict[str, bytes],
        min_replies: float,
        timeout: float,
    ) -> None:
        self._grid = grid
        self._directory = directory
        self._ledger = ledger
        self._blobs = blobs
        self._digests = {f"{kind}-sha256": sha256(blob) for kind, blob in blobs.items()}
        self._min_replies = min_replies
        self._timeout = timeout

    def messages(
        self, devices: Sequence[int], arrays: ArrayRecord, config: dict[str, Any], kind: str
    ) -> list[Message]:
        """Return a message of type ``kind`` for each device, its id and missing blobs included."""
        lacking = self._lacking(devices)
        messages = []
        for device in devices:
            own = {**config, **self._digests, "device": device}
            own |= {blob: self._blobs[blob] for blob in lacking[device]}
            content = RecordDict({"arrays": arrays, "config": ConfigRecord(own)})
            self._ledger.sent(content)
            node = self._directory.node_of(device)
            messages.append(Message(content, dst_node_id=node, message_type=kind))
        return messages

    def read(
        self, replies: Iterable[Message], devices: Sequence[int], like: State, kind: str = "co_up"
    ) -> list[DeviceReply]:
        """Check the replies, count them as ``kind`` and return them in the order of device ids.

        Raises AggregationError where too few devices answered, or one sent what does not fit.
        """
        good: dict[int, DeviceReply] = {}
        errors: list[str] = []
        for message in replies:
            if message.has_error():
                errors.append(_last_line(message.error.reason))
                continue
            self._ledger.received(message.content, kind)
            try:
                reply = _read_reply(message.content, like)
            except ValueError as error:
                raise AggregationError(str(error)) from error
            if reply.device in good or reply.device not in devices:
                raise AggregationError(
                    f"device {reply.device} answered twice or without being asked"
                )
            good[reply.device] = reply
        if not good or len(good) < self._min_replies * len(devices):
            cause = f"; first error: {errors[0]}" if errors else ""
            raise AggregationError(f"{len(good)} of {len(devices)} devices answered{cause}")
        return [good[device] for device in sorted(good)]

    def ask(
        self, devices: Sequence[int], arrays: ArrayRecord, config: dict[str, Any], like: State
    ) -> list[DeviceReply]:
        """Send ``train.head`` messages and return the replies."""
        messages = self.messages(devices, arrays, config, "train.head")
        replies = self._grid.send_and_receive(messages, timeout=self._timeout)
        return self.read(replies, devices, like, "other_up")

    def _lacking(self, devices: Sequence[int]) -> dict[int, list[str]]:
        """Ask each node, by hash, which blobs its devices hold; return what each device lacks."""
        by_node = self._directory.by_node(devices)
        messages = []
        for node, ids in by_node.items():
            content = RecordDict({"config": ConfigRecord({**self._digests, "devices": ids})})
            self._ledger.sent(content)
            messages.append(Message(content, dst_node_id=node, message_type="query.holds"))
        # A node that does not answer is sent everything: the round's own policy judges it.
        lacking = {device: list(self._blobs) for device in devices}
        for reply in self._grid.send_and_receive(messages, timeout=self._timeout):
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


def _read_reply(content: RecordDict, like: State) -> DeviceReply:
    (arrays,) = content.array_records.values()
    (metrics,) = content.metric_records.values()
    # Taken out of the metrics, which are averaged later: none of them is a thing to average.
    device, peak = metrics.pop("device"), metrics.pop("peak-rss-mb", 0.0)
    counts = metrics.pop("class-counts", None)
    state = to_state(arrays)
    check_state(state, like, f"device {device}")
    copy = Copy(
        state,
        int(metrics["num-examples"]),  # type: ignore[arg-type]
        None if counts is None else torch.tensor(counts),
    )
    return DeviceReply(int(device), copy, float(peak), content)  # type: ignore[arg-type]


def _last_line(reason: str | None) -> str:
    """Return the line of an error reply that names the cause; tracebacks stand above it."""
    return (reason or "no reason given").strip().splitlines()[-1].rstrip("'\">")
