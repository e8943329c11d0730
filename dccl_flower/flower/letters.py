"""An ask as messages carry it, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from dccl_flower.checkpoint import to_bytes
from dccl_flower.codecs import FP32, FP64, Codec, State, check_finite
from dccl_flower.device import decoded_answer
from dccl_flower.flower.wire import check_count, ndarrays, to_arrays, to_state
from dccl_flower.method import Answer, Ask
from dccl_flower.turns import Plain, to_config

SAMPLES, ROUND, PEAK = "num-examples", "server-round", "peak-rss-mb"
BESIDE = "beside."  # before the name of tensors that a message brings each time
HASH = "-sha256"  # behind the name of tensors that a device is sent once
NOT_AVERAGED = ("device", "devices", ROUND)


@dataclass(frozen=True)
class Reply:
    """What one message brought: the devices it speaks for, their answer, and each one's metrics.

    A peak of 0 means that the client does not tell. ``merged_bytes``: what devices that share a
    message would have sent each on its own, in all.
    """

    devices: list[int]
    answer: Answer
    contents: list[RecordDict]
    peak_rss_mb: float = 0.0
    merged_bytes: int | None = None


def speakers(content: RecordDict) -> list[int]:
    """Return the devices that a reply speaks for."""
    (metrics,) = content.metric_records.values()
    told: Any = metrics["devices"] if "devices" in metrics else [metrics["device"]]
    return [int(device) for device in told]


class Letter:
    """One ask: encoded once, however many devices it goes to.

    ``arrays`` are those of its state, where they are known. ``common`` is what the engine says in
    every message of a round. Replies that do not fit raise ValueError and name the device.
    """

    def __init__(
        self, ask: Ask, codec: Codec, common: Mapping[str, Plain], arrays: ArrayRecord | None = None
    ) -> None:
        self.ask = ask
        self.codec = codec
        self.arrays = to_arrays(ask.state, codec) if arrays is None else arrays
        self.digests = {f"{name}{HASH}": parcel.digest for name, parcel in ask.keep.items()}
        beside = {f"{BESIDE}{name}": to_bytes(state) for name, state in ask.beside.items()}
        own = {"codec": codec.name, "is-update": ask.like is None}
        turn = to_config(ask.turn)
        self.config: dict[str, Any] = {**common, **own, **turn, **self.digests, **beside}

    def content(
        self, devices: Sequence[int], shared: bool, parcels: Sequence[str], given: Mapping[str, Any]
    ) -> RecordDict:
        """Return a message to one device, or to several that share it, with the parcels named.

        Raises ValueError where ``given``, the caller's config, sets what a letter says itself.
        """
        if clash := given.keys() & {*self.config, *self.ask.keep, "device", "devices"}:
            raise ValueError(f"train_config: {min(clash)!r} is set by the strategy: leave it out")
        who: dict[str, Any] = {"devices": list(devices)} if shared else {"device": devices[0]}
        config = ConfigRecord({**given, **self.config, **who, **self.blobs(parcels)})
        return RecordDict({"arrays": self.arrays, "config": config})

    def blobs(self, parcels: Sequence[str]) -> dict[str, Any]:
        """Return the bytes of the parcels named."""
        return {name: self.ask.keep[name].blob() for name in parcels}

    def read(self, content: RecordDict) -> Reply:
        """Return what one message brought."""
        (metrics,) = content.metric_records.values()
        (arrays,) = content.array_records.values()
        devices, is_merged = speakers(content), "devices" in metrics
        who = f"devices {devices}: one" if is_merged else f"device {devices[0]}"
        if metrics.get(ROUND) != self.config[ROUND]:
            other = metrics.get(ROUND)
            raise ValueError(f"{who} replied to round {other}, in round {self.config[ROUND]}")
        count = check_count(metrics.get(SAMPLES), who)
        try:
            vectors = ndarrays(arrays)
            read = self._merged if is_merged else decoded_answer
            state = read(self.codec, self.ask, vectors)
        except ValueError as error:
            raise ValueError(f"{who} replied with what does not fit: {error}") from error
        check_finite(state, who)
        each: dict[str, Any] = {k: v for k, v in metrics.items() if k not in NOT_AVERAGED}
        wanted = {name: torch.tensor(each.pop(name)) for name in self.ask.wants if name in each}
        if len(wanted) < len(self.ask.wants):
            raise ValueError(f"{who} did not tell its {', '.join(self.ask.wants)}")
        if is_merged:
            each[SAMPLES] = each.pop(f"{SAMPLES}-each", [])
        else:
            each = {name: [value] for name, value in each.items()}
        peak = float(max(each.pop(PEAK, [0.0])))
        told = _one_by_one(devices, each)
        contents = [RecordDict({"metrics": MetricRecord(metrics)}) for metrics in told]
        own = {} if is_merged else told[0]
        answer = Answer(devices[0], state, count, own, wanted, devices[1:])
        size = len(devices) * self._up.count_bytes() if is_merged else None
        return Reply(devices, answer, contents, peak, size)

    def _merged(self, codec: Codec, ask: Ask, arrays: Sequence[np.ndarray]) -> State:
        if ask.like is not None:
            return FP64.decode(arrays, ask.like)
        state = FP64.decode(arrays, ask.state)
        if codec.sends_changes:  # which are to be added to what was not rounded
            state = {name: tensor + self._rounded_off[name] for name, tensor in state.items()}
        return state

    @cached_property
    def _up(self) -> ArrayRecord:
        """Arrays as large as those of one device's answer; trained, a state is as it was sent."""
        return self.arrays if self.ask.like is None else to_arrays(dict(self.ask.like), FP32)

    @cached_property
    def _rounded_off(self) -> State:
        """What encoding has taken from the state."""
        sent = self.ask.state
        received = to_state(self.arrays, sent, self.codec)
        return {name: sent[name].double() - received[name].double() for name in sent}


def _one_by_one(devices: Sequence[int], each: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics of each device. Raises ValueError for too few or many."""
    for name, values in each.items():
        if len(values) != len(devices):
            raise ValueError(f"devices {devices} replied with {len(values)} values of {name!r}")
    return [{name: values[place] for name, values in each.items()} for place in range(len(devices))]
