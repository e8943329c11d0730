"""Turn a message into a turn of a device's half, and its answer into a reply."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from flwr.client import NumPyClient

from dccl_flower.cache import cache_root
from dccl_flower.checkpoint import from_bytes
from dccl_flower.codecs import CODECS, FP32, FP64, Codec
from dccl_flower.device import Device, Memory, decoded_answer, encoded_answer
from dccl_flower.device_store import DeviceStore, Parcel
from dccl_flower.engine import peak_rss_mb
from dccl_flower.faults import check_values
from dccl_flower.flower.letters import (
    BESIDE,
    EXCHANGE,
    HASH,
    KEEP_LAST,
    PEAK,
    RENEWED,
    ROUND,
    SAMPLES,
)
from dccl_flower.method import Answer, Ask, DeviceHalf
from dccl_flower.turns import from_config

Arrays = list[np.ndarray]
Metrics = dict[str, Any]
T = TypeVar("T")
MERGE_AFTER = 16
DEVICES = "devices"  # below the cache


class DeviceClient(NumPyClient):
    """A device's half behind messages; which device it plays stands in each message's config.

    ``load_data`` gives a device id's private samples as the half takes them: batches (images,
    labels), e.g. a DataLoader; ``store`` is the folder where a device keeps what it was sent, and
    what it remembers: by default one below the cache, which is not emptied.
    """

    def __init__(
        self,
        half: DeviceHalf,
        load_data: Callable[[int], Any],
        store: str | os.PathLike[str] | None = None,
    ) -> None:
        self._half = half
        self._load = load_data
        self._store = DeviceStore(cache_root() / DEVICES if store is None else store)

    def get_properties(self, config: Metrics) -> Metrics:
        """Tell for each of ``config["devices"]`` whether it holds each parcel, asked by hash."""
        holds, devices = self._store.holds, _told(config, "devices", list)
        return {
            f"holds-{key.removesuffix(HASH)}": [holds(device, digest) for device in devices]
            for key, digest in config.items()
            if key.endswith(HASH)
        }

    def fit(self, parameters: Arrays, config: Metrics) -> tuple[Arrays, int, Metrics]:
        """Take one turn and return the arrays, the sample count and metrics.

        Where the config names several ``devices`` they take it one after the other, and what
        returns is their merged answer in float64 and lists of metrics. Raises BadAnswer for a
        parcel that is missing or fails its SHA-256.
        """
        take = self._take_turns if "devices" in config else self.again
        return take(parameters, config)

    def again(self, parameters: Arrays, config: Metrics) -> tuple[Arrays, int, Metrics]:
        """Take one turn, the first of a round or one more."""
        device = self._device(config.get("device"), config)
        ask = self._ask(parameters, config, device, self._take_parcels(device.number, config))
        answer = self._half.turn(ask, device)
        update = encoded_answer(_codec_up(config), ask, answer, device.memory)
        told = {**answer.metrics, **_lists(answer), **_of_engine(device), ROUND: config[ROUND]}
        return update, int(answer.count), told

    def evaluate(self, parameters: Arrays, config: Metrics) -> tuple[float, int, Metrics]:
        """Score on the device's own samples."""
        device = self._device(config.get("device"), config)
        ask = self._ask(parameters, config, device, self._take_parcels(device.number, config))
        answer = self._half.turn(ask, device)
        metrics = {**answer.metrics, ROUND: config[ROUND]}
        return metrics.pop("loss"), int(answer.count), metrics

    def _take_turns(self, parameters: Arrays, config: Metrics) -> tuple[Arrays, int, Metrics]:
        # Before the first turn: a message that fails is sent again, and must leave nobody changed.
        numbers = _told(config, "devices", list)
        keeps = {number: self._take_parcels(number, config) for number in numbers}
        # Read once, for all of them.
        ask = self._ask(parameters, config, self._device(next(iter(numbers), None), config), {})
        codec, answers = _codec_up(config), []
        told: Metrics = {}
        for number, keep in keeps.items():
            device = self._device(number, config)
            answer = self._half.turn(replace(ask, keep=keep), device)
            update = encoded_answer(codec, ask, answer, device.memory)
            like = None if config["is-update"] else answer.state
            state = decoded_answer(codec, replace(ask, like=like), update)
            check_values(state, f"device {number}")  # whose they are no longer shows once merged
            answers.append(Answer(number, state, answer.count, {}, answer.beside))
            each = {**answer.metrics, f"{SAMPLES}-each": int(answer.count), PEAK: peak_rss_mb()}
            each[RENEWED] = device.memory.renewed
            for name, value in each.items():
                told.setdefault(name, []).append(value)
            if len(answers) == MERGE_AFTER:  # or memory would grow with the devices
                answers = [self._half.merge(ask.turn, answers)]
        merged = self._half.merge(ask.turn, answers)
        told |= {**_lists(merged), ROUND: config[ROUND]}
        return FP64.encode(merged.state), int(merged.count), told

    def _device(self, number: Any, config: Metrics) -> Device:
        run, keep_last = _told(config, "run", str), _told(config, KEEP_LAST, int)
        turn = _told(config, ROUND, int), _told(config, EXCHANGE, int)
        memory = Memory(self._store, number, run, turn, keep_last)
        return Device(memory.device, turn[0], _told(config, "seed", int), self._load, memory)

    def _ask(
        self, parameters: Arrays, config: Metrics, device: Device, keep: Mapping[str, Parcel]
    ) -> Ask:
        turn = from_config(config, self._half.turns)
        state = _codec(config).decode(parameters, self._half.state_like(turn, device))
        beside = {
            key.removeprefix(BESIDE): from_bytes(value)
            for key, value in config.items()
            if key.startswith(BESIDE)
        }
        return Ask(state, turn, beside, keep)

    def _take_parcels(self, device: int, config: Metrics) -> dict[str, Parcel]:
        """Keep the parcels that the message brought, and return all that it names.

        Raises BadAnswer where the device then lacks one that it is to use.
        """
        parcels = {}
        for key in (key for key in config if key.endswith(HASH)):
            name, digest = key.removesuffix(HASH), config[key]
            if name in config:
                self._store.put(device, digest, config[name])
            else:
                self._store.check(device, digest)
            parcels[name] = Parcel(digest, partial(self._store.get, device, digest))
        return parcels


def _codec_up(config: Metrics) -> Codec:
    """Return what encodes an answer: what is no update of the state sent goes up exactly."""
    return _codec(config) if _told(config, "is-update", bool) else FP32


def _codec(config: Metrics) -> Codec:
    name = _told(config, "codec", str)
    if name not in CODECS:
        raise ValueError(f"message: codec={name:.80}: must be one of {', '.join(CODECS)}")
    return CODECS[name]


def _told(config: Metrics, key: str, kind: type[T]) -> T:
    """Return what a message says under a key. Raises ValueError where it is of another type."""
    value = config.get(key)
    if type(value) is not kind:
        raise ValueError(f"message: {key}={value!r:.80}: must be {kind.__name__}")
    return value


def _of_engine(device: Device) -> Metrics:
    renewed = device.memory.renewed
    return {PEAK: peak_rss_mb()} | ({RENEWED: renewed} if renewed else {})


def _lists(answer: Answer) -> dict[str, Sequence[float]]:
    return {name: tensor.tolist() for name, tensor in answer.beside.items()}
