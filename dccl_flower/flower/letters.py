"""An ask as messages carry it, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from dccl_flower.checkpoint import to_bytes
from dccl_flower.codecs import FP32, FP64, Codec, State
from dccl_flower.device import decoded_answer
from dccl_flower.faults import BadAnswer, check_count, check_values, named
from dccl_flower.flower.wire import ndarrays, to_arrays, to_state
from dccl_flower.method import Answer, Ask
from dccl_flower.turns import Plain, to_config

SAMPLES, ROUND, PEAK = "num-examples", "server-round", "peak-rss-mb"
RENEWED = "renewed"  # how many files a device made anew, having found them damaged
EXCHANGE, KEEP_LAST = "exchange", "keep-last"
BESIDE = "beside."  # before the name of tensors that a message brings each time
HASH = "-sha256"  # behind the name of tensors that a device is sent once
NOT_AVERAGED = ("device", "devices", ROUND)


@dataclass(frozen=True)
class Reply:
    """What one message brought: the devices it speaks for, their answer, and each one's metrics.

    ``counts`` are the samples of each. A peak of 0 means that the client does not tell.
    ``renewed``: those that found what they keep damaged, and made it anew. ``merged_bytes``: what
    devices that share a message would have sent each on its own, in all.
    """

    devices: list[int]
    answer: Answer
    contents: list[RecordDict]
    counts: Mapping[int, int]
    peak_rss_mb: float = 0.0
    renewed: Sequence[int] = ()
    merged_bytes: int | None = None


def speakers(content: RecordDict) -> list[int]:
    """Return the devices that a reply speaks for. Raises BadAnswer where it does not tell."""
    if len(content.metric_records) != 1:
        raise BadAnswer("nameless", "a reply without its one record of metrics names no device")
    (metrics,) = content.metric_records.values()
    told: Any = metrics["devices"] if "devices" in metrics else [metrics.get("device")]
    is_list = isinstance(told, list) and told
    if not is_list or any(type(device) is not int for device in told):
        raise BadAnswer("nameless", "a reply does not name the device that it is of")
    return list(told)


def in_line(devices: Sequence[int], is_merged: bool) -> str:
    """Return who replied, as a line names it."""
    return f"{named(devices)}: one" if is_merged else named(devices)


class Letter:
    """One ask: encoded once, however many devices it goes to.

    ``arrays`` are those of its state, where they are known. ``common`` is what the engine says in
    every message of a round. Replies that do not fit raise BadAnswer and name the device.
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

    def read_scores(self, content: RecordDict) -> Reply:
        """Return the scores of a device on its own samples."""
        devices, (metrics,) = speakers(content), content.metric_records.values()
        who = named(devices)
        count = self._count(metrics, who)
        told: dict[str, Any] = {k: v for k, v in metrics.items() if k not in NOT_AVERAGED}
        for name, value in told.items():
            if isinstance(value, list):
                raise BadAnswer("unfit", f"{who} replied with {len(value)} values of {name!r}")
            if not math.isfinite(value):
                raise BadAnswer("not_finite", f"{who} replied with {name}={value}")
        contents = [RecordDict({"metrics": MetricRecord(told)})]
        return Reply(devices, Answer(devices[0], {}, count, told), contents, {devices[0]: count})

    def read(self, content: RecordDict) -> Reply:
        """Return what one message brought."""
        devices, (metrics,) = speakers(content), content.metric_records.values()
        is_merged = "devices" in metrics
        who = in_line(devices, is_merged)
        count = self._count(metrics, who)
        state = self._state(content, is_merged, who)
        check_values(state, who)
        each: dict[str, Any] = {k: v for k, v in metrics.items() if k not in NOT_AVERAGED}
        wanted = {name: torch.tensor(each.pop(name)) for name in self.ask.wants if name in each}
        if is_merged:
            each[SAMPLES] = each.pop(f"{SAMPLES}-each", [])
        else:
            each = {name: [value] for name, value in each.items()}
        told = _one_by_one(devices, each)
        peaks = [float(metrics.pop(PEAK, 0.0)) for metrics in told]
        check_values({PEAK: torch.tensor(peaks)}, who)
        renewed = [d for d, metrics in zip(devices, told, strict=True) if metrics.pop(RENEWED, 0)]
        counts = {
            device: check_count(metrics[SAMPLES], named([device]))
            for device, metrics in zip(devices, told, strict=True)
        }
        if sum(counts.values()) != count:
            line = f"{who} replied with num-examples={count}, and {sum(counts.values())} one by one"
            raise BadAnswer("samples", line)
        contents = [RecordDict({"metrics": MetricRecord(metrics)}) for metrics in told]
        own = {} if is_merged else told[0]
        answer = Answer(devices[0], state, count, own, wanted, devices[1:])
        size = len(devices) * self._up.count_bytes() if is_merged else None
        return Reply(devices, answer, contents, counts, max(peaks), renewed, size)

    def _count(self, metrics: MetricRecord, who: str) -> int:
        """Return the samples of a reply to this round."""
        if metrics.get(ROUND) != self.config[ROUND]:
            other = metrics.get(ROUND)
            line = f"{who} replied to round {other}, in round {self.config[ROUND]}"
            raise BadAnswer("stale", line)
        return check_count(metrics.get(SAMPLES), who)

    def _state(self, content: RecordDict, is_merged: bool, who: str) -> State:
        if len(content.array_records) != 1:
            found = len(content.array_records)
            raise BadAnswer("unfit", f"{who} replied with {found} records of arrays, expected 1")
        (arrays,) = content.array_records.values()
        read = self._merged if is_merged else decoded_answer
        try:
            return read(self.codec, self.ask, ndarrays(arrays))
        except ValueError as error:
            raise BadAnswer("unfit", f"{who} replied with what does not fit: {error}") from error

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
    """Return the metrics of each device. Raises BadAnswer for too few or many."""
    for name, values in each.items():
        if len(values) != len(devices):
            line = f"{named(devices)} replied with {len(values)} values of {name!r}"
            raise BadAnswer("unfit", line)
    return [{name: values[place] for name, values in each.items()} for place in range(len(devices))]
