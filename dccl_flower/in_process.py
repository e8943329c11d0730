"""Run a method's rounds in this process: no Flower, no Ray, the same numbers.

Devices take their turns one after the other; what they send and keep passes through the codec and
the store as it would on the wire. For a debugger, a quick look, and searches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from uuid import uuid4

from dccl_flower.codecs import FP32, Codec, State, check_finite, encoded_bytes
from dccl_flower.device import Device, Load, Memory, decoded_answer, encoded_answer
from dccl_flower.device_store import DeviceStore
from dccl_flower.engine import AfterRound, OpenRound, RoundFacts, Traffic, once_each, peak_rss_mb
from dccl_flower.fleet.clock import Cohort
from dccl_flower.fleet.roster import FaultPolicy, Roster
from dccl_flower.fleet.tiers import turn_costs
from dccl_flower.method import Answer, Ask, DeviceHalf, Method


@dataclass
class InProcess:
    """A federation of one process; ``traffic`` counts the bytes of what passes, by kind.

    Without messages around them bytes are those of the tensors alone, and devices that would share
    a message do not: their sums run in the order of their ids.
    """

    method: Method
    half: DeviceHalf
    roster: Roster
    load: Load
    store: DeviceStore
    codec: Codec = FP32
    policy: FaultPolicy = field(default_factory=FaultPolicy)
    traffic: Traffic = field(default_factory=Traffic, init=False)
    _run: str = field(default_factory=lambda: uuid4().hex[:16], init=False)
    _held: set[tuple[int, str]] = field(default_factory=set, init=False)

    def run(self, num_rounds: int, after_round: AfterRound) -> State:
        """Run all rounds and return the last state of record.

        Raises RoundStopped where too few devices answer in virtual time, ValueError where a device
        answers with a value that is not finite.
        """
        self.method.plan(num_rounds)
        state = self.method.initial_state()
        self.method.prepare()
        self.roster.prepare(lambda fleet: turn_costs(fleet, self.method.workload(), self.codec))
        after_round(0, state, RoundFacts())
        for number in range(1, num_rounds + 1):
            cohort = self.roster.draw(number, self.policy)
            state = self._round(number, state, cohort)
            after_round(number, state, self.traffic.facts(cohort, cohort.devices, peak_rss_mb()))
        return state

    def _round(self, number: int, state: State, cohort: Cohort) -> State:
        going = OpenRound(self.method.round(number, state, cohort.asked))
        while going.asks is not None:
            there = {place: going.asks[place] for place in cohort.devices if place in going.asks}
            going.answer(dict(self._answers(number, there)))
        return going.state

    def _answers(self, number: int, asks: Mapping[int, Ask]) -> Iterator[tuple[int, Answer]]:
        for place, (received, sizes) in once_each(asks, self._passed).items():
            for name, size in sizes.items():
                self.traffic.count(f"{name}_down", size)
            for name, parcel in received.keep.items():
                if (place, parcel.digest) not in self._held:
                    self._held.add((place, parcel.digest))
                    self.traffic.count(f"{name}_down", len(parcel.blob()))
            yield place, self._answer(number, place, asks[place], received)

    def _passed(self, ask: Ask) -> tuple[Ask, dict[str, int]]:
        """Return an ask as devices receive it, and the bytes of what comes each time, by name."""
        arrays = self.codec.encode(ask.state)
        beside = {name: FP32.encode(dict(state)) for name, state in ask.beside.items()}
        sizes = {name: encoded_bytes(sent) for name, sent in {ask.sends: arrays, **beside}.items()}
        return replace(ask, state=self.codec.decode(arrays, ask.state)), sizes

    def _answer(self, number: int, place: int, sent: Ask, received: Ask) -> Answer:
        memory = Memory(self.store, place, self._run)
        device = Device(place, number, self.roster.seed, self.load, memory)
        answer = self.half.turn(received, device)
        codec = self.codec if sent.like is None else FP32
        update = encoded_answer(codec, received, answer, memory)
        self.traffic.count(f"{sent.brings}_up", encoded_bytes(update))
        state = decoded_answer(codec, sent, update)
        check_finite(state, f"device {place}")
        return replace(answer, state=state)
