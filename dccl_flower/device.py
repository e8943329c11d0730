"""One device in one turn: who it is, its samples, what it keeps, and its random draws."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dccl_flower.checkpoint import from_bytes, to_bytes
from dccl_flower.codecs import FP32, Codec, State, Vectors
from dccl_flower.data.batches import Batches, as_batches
from dccl_flower.device_store import DeviceStore, checked_device
from dccl_flower.faults import BadAnswer
from dccl_flower.method import Answer, Ask
from dccl_flower.seeds import isolated_rng, torch_generator

RUN = re.compile("[0-9A-Za-z-]{1,64}")
Load = Callable[[int], Any]
DIGEST_BYTES = 32


@dataclass
class Memory:
    """What a device keeps from turn to turn, under names.

    It is of one run, unless it says that it holds for all of them. Each file is the SHA-256 of
    safetensors, and the safetensors. ``turn`` is the round and the exchange in it: a turn finds
    what those before it kept, so that one which is taken twice comes to the same twice. The last
    ``keep_last`` rounds may be asked for once more. ``renewed`` counts those that were damaged and
    are done without, because they can be made again. Device and run come in messages: raises
    ValueError for what could lead out of the store.
    """

    store: DeviceStore
    device: int
    run: str
    turn: tuple[int, int] = (0, 0)
    keep_last: int = 1
    renewed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        checked_device(self.device)
        if not isinstance(self.run, str) or not RUN.fullmatch(self.run):
            raise ValueError(f"run {self.run!r:.80}: must be up to 64 letters, digits and hyphens")

    def kept(self, name: str, of_all_runs: bool = False) -> State | None:
        """Return what :meth:`keep` kept in an earlier turn, or None.

        What is damaged is removed. Raises BadAnswer where it was of this run alone: the device then
        does without from its next turn on. What holds for all runs can be made again: None.
        """
        path = self._of_all_runs(name) if of_all_runs else self._last_version(name)
        if path is None or not path.exists():
            return None
        content = path.read_bytes()
        digest, blob = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(blob).digest() == digest:
            return from_bytes(blob)
        path.unlink()
        if of_all_runs:
            self.renewed += 1
            return None
        shutil.rmtree(path.parent)
        raise BadAnswer("damaged", f"device {self.device} keeps a damaged {name}: starts it anew")

    def keep(self, name: str, state: State, of_all_runs: bool = False) -> None:
        """Keep tensors under a name, in place of the last ones."""
        blob = to_bytes(state)
        path = self._of_all_runs(name) if of_all_runs else self._version(name, self.turn)
        self.store.write(path, hashlib.sha256(blob).digest() + blob)
        if not of_all_runs:
            self._forget(name)

    def _forget(self, name: str) -> None:
        """Remove what no round will be asked with."""
        versions = self._versions(name)
        first = (self.turn[0] - self.keep_last + 1, 0)  # the first that may be asked once more
        needed = max((turn for turn in versions if turn < first), default=first)
        for turn in versions:
            if turn < needed or turn > self.turn:
                self._version(name, turn).unlink()

    def _last_version(self, name: str) -> Path | None:
        before = [turn for turn in self._versions(name) if turn < self.turn]
        return self._version(name, max(before)) if before else None

    def _versions(self, name: str) -> list[tuple[int, int]]:
        numbers = (path.name.split("-") for path in self._of_run(name).glob("*-*[0-9]"))
        return [(int(server_round), int(exchange)) for server_round, exchange in numbers]

    def _version(self, name: str, turn: tuple[int, int]) -> Path:
        return self._of_run(name) / f"{turn[0]}-{turn[1]}"

    def _of_run(self, name: str) -> Path:
        return self.store.own(self.device) / self.run / name

    def _of_all_runs(self, name: str) -> Path:
        return self.store.own(self.device) / name


@dataclass
class Device:
    """What a device's half may use in a turn; ``load`` gives the samples of a device id."""

    number: int
    server_round: int
    seed: int
    load: Load
    memory: Memory

    @cached_property
    def own(self) -> Any:
        """The device's own samples, in the form that the experiment loads them in."""
        return self.load(self.number)

    @cached_property
    def batches(self) -> Batches:
        """The device's own samples, of an experiment that loads them in batches of any kind."""
        return as_batches(self.own)

    def example(self) -> torch.Tensor:
        """Return two of the device's images, to measure models by."""
        with isolated_rng(self.seed, "example"):
            images, _ = next(iter(as_batches(self.load(self.number))))
        return images[:2]

    def generator(self, purpose: str, *more: int) -> torch.Generator:
        """Return the generator of this turn for one purpose."""
        return torch_generator(self.seed, *self._keys(purpose, *more))

    def isolated(self, purpose: str, *more: int) -> AbstractContextManager[None]:
        """Return a scope in which torch's global generators are this turn's own."""
        return isolated_rng(self.seed, *self._keys(purpose, *more), "torch")

    def _keys(self, purpose: str, *more: int) -> Sequence[str | int]:
        return (purpose, "device", self.number, "round", self.server_round, *more)


def encoded_answer(codec: Codec, ask: Ask, answer: Answer, memory: Memory) -> Vectors:
    """Return what goes up of an answer's state; what rounding loses is kept for the next one."""
    if not codec.sends_changes:
        return codec.encode(answer.state)
    residual = memory.kept("residual") or {}
    update, residual = codec.encode_update(answer.state, ask.state, residual)
    memory.keep("residual", residual)
    return update


def decoded_answer(codec: Codec, ask: Ask, arrays: Sequence[np.ndarray]) -> State:
    """Return an answer's state as the server reads it. Raises ValueError where it does not fit."""
    if ask.like is not None:
        return FP32.decode(arrays, ask.like)
    return codec.apply_update(arrays, ask.state)
