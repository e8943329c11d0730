"""An ask as messages carry it, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from dccl_flower.checkpoint import to_bytes
from dccl_flower.codecs import FP32, Codec, State, check_finite, decode_exact
from dccl_flower.flower.wire import (
    check_count,
    check_round,
    ndarrays,
    to_arrays,
    to_state,
)
from dccl_flower.method import Answer, Ask
from dccl_flower.turns import Plain, to_config

SAMPLES, ROUND, PEAK = "num-examples", "server-round", "peak-rss-mb"
BESIDE = "beside."  # before the name of tensors that a message brings each time
HASH = "-sha256"  # behind the name of tensors that a device is sent once
NOT_AVERAGED = ("device", PEAK, ROUND)


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
        self,
        ask: Ask,
        codec: Codec,
        common: Mapping[str, Plain],
        arrays: ArrayRecord | None = None,
    ) -> None:
        self.ask = ask
        self.codec = codec
        self.arrays = to_arrays(ask.state, codec) if arrays is None else arrays
        self.digests = {f"{name}{HASH}": parcel.digest for name, parcel in ask.keep.items()}
        beside = {f"{BESIDE}{name}": to_bytes(state) for name, state in ask.beside.items()}
        own = {"codec": codec.name, "is-update": ask.like is None}
        self._round = common[ROUND]
        self.config: dict[str, Any] = {
            **common,
            **own,
            **to_config(ask.turn),
            **self.digests,
            **beside,
        }

    @property
    def reserved(self) -> set[str]:
        """The keys of a message that its sender's config cannot set."""
        return {*self.config, *self.ask.keep, "device", "devices"}

    def content(
        self, devices: Sequence[int], shared: bool, parcels: Sequence[str], given: Mapping[str, Any]
    ) -> RecordDict:
        """Return a message to one device, or to several that share it, with the parcels named."""
        who: dict[str, Any] = {"devices": list(devices)} if shared else {"device": devices[0]}
        blobs = {name: self.ask.keep[name].blob() for name in parcels}
        config = ConfigRecord({**given, **self.config, **who, **blobs})
        return RecordDict({"arrays": self.arrays, "config": config})

    def read(self, content: RecordDict) -> Reply:
        """Return what one message brought."""
        (metrics,) = content.metric_records.values()
        (arrays,) = content.array_records.values()
        devices = speakers(content)
        is_merged = "devices" in metrics
        who = f"devices {devices}: one" if is_merged else f"device {devices[0]}"
        check_round(metrics.get(ROUND), int(self._round), who)
        count = check_count(metrics.get(SAMPLES), who)
        try:
            state = self._merged(arrays) if is_merged else self._state(arrays)
        except ValueError as error:
            raise ValueError(f"{who} replied with what does not fit: {error}") from error
        check_finite(state, who)
        told: dict[str, Any] = dict(metrics)
        wanted = {name: torch.tensor(told.pop(name)) for name in self.ask.wants if name in told}
        if len(wanted) < len(self.ask.wants):
            raise ValueError(f"{who} did not tell its {', '.join(self.ask.wants)}")
        if is_merged:
            return self._shared_reply(devices, state, count, told, wanted)
        answer = Answer(devices[0], state, count, _averaged(told), wanted)
        peak = float(told.get(PEAK, 0.0))
        return Reply(devices, answer, [_record(answer.metrics)], peak)

    def _state(self, arrays: ArrayRecord) -> State:
        if self.ask.like is not None:
            return to_state(arrays, self.ask.like, FP32)
        return self.codec.apply_update(ndarrays(arrays), self.ask.state)

    def _merged(self, arrays: ArrayRecord) -> State:
        state = decode_exact(ndarrays(arrays), self.ask.state)
        if self.codec.sends_changes:  # which are to be added to what was not rounded
            state = {name: tensor + self._rounded_off[name] for name, tensor in state.items()}
        return state

    @cached_property
    def _rounded_off(self) -> State:
        """What encoding has taken from the state."""
        sent = self.ask.state
        received = to_state(self.arrays, sent, self.codec)
        return {name: sent[name].double() - received[name].double() for name in sent}

    def _shared_reply(
        self, devices: list[int], state: State, count: int, told: dict[str, Any], beside: State
    ) -> Reply:
        peak = max(told.pop(PEAK, [0.0]))
        each = {k: v for k, v in told.items() if k not in ("devices", SAMPLES, ROUND)}
        each[SAMPLES] = each.pop(f"{SAMPLES}-each")
        for name, values in each.items():
            if len(values) != len(devices):
                raise ValueError(f"devices {devices} replied with {len(values)} values of {name!r}")
        places = range(len(devices))
        contents = [_record({name: each[name][place] for name in each}) for place in places]
        answer = Answer(devices[0], state, count, {}, beside, devices[1:])
        # Trained, a state is as large as it was sent.
        return Reply(devices, answer, contents, peak, len(devices) * self.arrays.count_bytes())


def _averaged(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics that may be averaged over devices."""
    return {name: value for name, value in metrics.items() if name not in NOT_AVERAGED}


def _record(metrics: Mapping[str, Any]) -> RecordDict:
    return RecordDict({"metrics": MetricRecord(dict(metrics))})
