"""Run a method's rounds in this process: no Flower, no Ray, the same numbers.

Devices take their turns one after the other; what they send and keep passes through the codec and
the store as it would on the wire. For a debugger, a quick look, and searches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from dccl_flower.codecs import FP32, Codec, State, check_finite, encoded_bytes
from dccl_flower.device import Device, Load, Memory, encoded_answer
from dccl_flower.device_store import DeviceStore
from dccl_flower.engine import AfterRound, RoundFacts
from dccl_flower.fleet.clock import Cohort
from dccl_flower.fleet.roster import FaultPolicy, Roster
from dccl_flower.memory import peak_rss_mb
from dccl_flower.method import Answer, Ask, DeviceHalf, Method


class InProcess:
    """A federation of one process; ``sent`` counts the bytes of what passes, by kind.

    Without messages around them bytes are those of the tensors alone, and devices that would share
    a message do not: their sums run in the order of their ids.
    """

    def __init__(
        self,
        method: Method,
        half: DeviceHalf,
        roster: Roster,
        load: Load,
        store: DeviceStore,
        codec: Codec = FP32,
        policy: FaultPolicy | None = None,
    ) -> None:
        self.sent: Counter[str] = Counter()
        self._method = method
        self._half = half
        self._roster = roster
        self._load = load
        self._store = store
        self._codec = codec
        self._policy = policy or FaultPolicy()
        self._run = uuid4().hex[:16]
        self._holds: set[tuple[int, str]] = set()

    def run(self, num_rounds: int, after_round: AfterRound) -> State:
        """Run all rounds and return the last state of record.

        Raises RoundStopped where too few devices answer in virtual time, ValueError where a device
        answers with a value that is not finite.
        """
        self._method.plan(num_rounds)
        state = self._method.initial_state()
        self._method.prepare()
        self._roster.prepare(self._method.workload, self._codec)
        after_round(0, state, RoundFacts())
        for number in range(1, num_rounds + 1):
            cohort, before = self._roster.draw(number, self._policy), Counter(self.sent)
            state = self._round(number, state, cohort)
            after_round(number, state, self._facts(cohort, self.sent - before))
        return state

    def _round(self, number: int, state: State, cohort: Cohort) -> State:
        exchange = self._method.round(number, state, cohort.asked)
        try:
            asks = next(exchange)
            while True:
                there = [device for device in cohort.devices if device in asks]
                asks = exchange.send(dict(self._answers(number, asks, there)))
        except StopIteration as end:
            next_state: State = end.value
            return next_state

    def _facts(self, cohort: Cohort, spent: Counter[str]) -> RoundFacts:
        down = sum(size for kind, size in spent.items() if kind.endswith("_down"))
        up = sum(size for kind, size in spent.items() if kind.endswith("_up"))
        clock: dict[str, Any] = {"virtual_seconds": cohort.virtual_seconds}
        clock |= {"late": cohort.late, "gone": cohort.gone}
        return RoundFacts(cohort.devices, down, up, worker_peak_mb=peak_rss_mb(), **clock)

    def _answers(
        self, number: int, asks: Mapping[int, Ask], devices: Sequence[int]
    ) -> Iterator[tuple[int, Answer]]:
        received: dict[int, tuple[State, int]] = {}
        for place in devices:
            ask = asks[place]
            if id(ask) not in received:
                arrays = self._codec.encode(ask.state)
                received[id(ask)] = self._codec.decode(arrays, ask.state), encoded_bytes(arrays)
            state, size = received[id(ask)]
            self._count_down(ask, place, size)
            yield place, self._answer(number, place, ask, replace(ask, state=state))

    def _answer(self, number: int, place: int, sent: Ask, received: Ask) -> Answer:
        memory = Memory(self._store, place, self._run)
        device = Device(place, number, self._roster.seed, self._load, memory)
        answer = self._half.turn(received, device)
        codec = self._codec if sent.like is None else FP32
        update = encoded_answer(codec, received, answer, memory)
        self.sent[f"{sent.brings}_up"] += encoded_bytes(update)
        base = sent.state if sent.like is None else sent.like
        state = codec.apply_update(update, base)
        check_finite(state, f"device {place}")
        return replace(answer, state=state)

    def _count_down(self, ask: Ask, place: int, size: int) -> None:
        self.sent[f"{ask.sends}_down"] += size
        for name, state in ask.beside.items():
            self.sent[f"{name}_down"] += encoded_bytes(FP32.encode(dict(state)))
        for name, parcel in ask.keep.items():
            if (place, parcel.digest) not in self._holds:
                self._holds.add((place, parcel.digest))
                self.sent[f"{name}_down"] += len(parcel.blob())
