"""Run a method's rounds in this process: no Flower, no Ray, the same numbers.

Devices take their turns one after the other; what they send and keep passes through the codec and
the store as it would on the wire. For a debugger, a quick look, and searches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from dccl_flower.codecs import FP32, Codec, State, encoded_bytes
from dccl_flower.config import ConfError
from dccl_flower.device import Device, Load, Memory, decoded_answer, encoded_answer
from dccl_flower.device_store import DeviceStore
from dccl_flower.engine import AfterRound, OpenRound, RoundFacts, Traffic, once_each, peak_rss_mb
from dccl_flower.faults import Fault, check_count, check_values, fault_of
from dccl_flower.fleet.clock import Cohort
from dccl_flower.fleet.judge import FaultPolicy, Judge
from dccl_flower.fleet.roster import Roster
from dccl_flower.fleet.tiers import turn_costs
from dccl_flower.method import Answer, Ask, DeviceHalf, Method
from dccl_flower.standing import Standing
from dccl_flower.time_limit import time_limit

Passed = tuple[Ask, dict[str, int]]


@dataclass
class InProcess:
    """A federation of one process; ``traffic`` counts the bytes of what passes, by kind.

    Devices keep what they need to be asked for the last ``keep_last`` rounds once more.

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
    keep_last: int = 1
    traffic: Traffic = field(default_factory=Traffic, init=False)
    _run: str = field(default_factory=lambda: uuid4().hex[:16], init=False)
    _held: set[tuple[int, str]] = field(default_factory=set, init=False)
    _judge: Judge = field(init=False)

    def __post_init__(self) -> None:
        self._judge = Judge(self.policy)

    def run(
        self, num_rounds: int, after_round: AfterRound, standing: Standing | None = None
    ) -> State:
        """Run all rounds, or those that are left, and return the last state of record.

        Raises RoundStopped where too few devices answer in virtual time, or the policy stops at
        one that fails.
        """
        self.method.plan(num_rounds)
        state = self.method.initial_state() if standing is None else standing.state
        self.method.prepare()
        self.roster.prepare(lambda fleet: turn_costs(fleet, self.method.workload(), self.codec))
        if standing is None:
            after_round(0, state, RoundFacts())
        else:
            self._go_on(standing.engine)
        for number in range(1 if standing is None else standing.number + 1, num_rounds + 1):
            cohort = self.roster.draw(number, self.policy)
            state, answered = self._round(number, state, cohort)
            facts = self.traffic.facts(cohort, answered, peak_rss_mb())
            after_round(number, state, replace(facts, faults=self._judge.close_round()))
        return state

    def memory(self) -> dict[str, Any]:
        """Return plain values from which another engine goes on at a round's border."""
        return {
            "run": self._run,
            "traffic": dict(self.traffic.totals),
            "answered": sorted(self.roster.answered),
            "held": sorted(self._held),
        }

    def _go_on(self, memory: Mapping[str, Any]) -> None:
        self._run = memory["run"]
        self.traffic.go_on(memory["traffic"])
        self.roster.answered = set(memory["answered"])
        self._held = {(device, digest) for device, digest in memory["held"]}

    def _round(self, number: int, state: State, cohort: Cohort) -> tuple[State, list[int]]:
        """Return the next state, and who answered what was asked first."""
        going, answered = OpenRound(self.method.round(number, state, cohort.asked)), None
        turn = (number, 0)
        while going.asks is not None:
            there = {place: going.asks[place] for place in cohort.devices if place in going.asks}
            answers = self._answers(turn, there)
            answered = list(answers) if answered is None else answered
            going.answer(answers)
            turn = (number, turn[1] + 1)
        return going.state, answered or []

    def _answers(self, turn: tuple[int, int], asks: Mapping[int, Ask]) -> dict[int, Answer]:
        """Return the good answers. Raises RoundStopped where the policy says to stop."""
        passed, judge = once_each(asks, self._passed), self._judge
        answers: dict[int, Answer] = {}
        faults = self._take(turn, asks, passed, answers)
        if again := judge.to_ask_again(faults, answers):
            judge.note(turn[0], again, "asked again")
            rest = [fault for fault in faults if fault not in again]
            them = {device: asks[device] for fault in again for device in fault.devices}
            faults = rest + self._take(turn, them, passed, answers)
        if asks:
            judge.settle(turn[0], faults, len(answers), len(asks))
        return dict(sorted(answers.items()))

    def _take(
        self,
        turn: tuple[int, int],
        asks: Mapping[int, Ask],
        passed: Mapping[int, Passed],
        answers: dict[int, Answer],
    ) -> list[Fault]:
        """Add the answers of devices to those that are there, and return what went wrong."""
        faults = []
        for place, ask in asks.items():
            self._count_down(place, passed[place])
            try:
                answers[place] = self._answer(turn, place, ask, passed[place][0])
            except ConfError:
                raise
            except Exception as error:
                faults.append(fault_of(error, place))
        return faults

    def _count_down(self, place: int, passed: Passed) -> None:
        received, sizes = passed
        for name, size in sizes.items():
            self.traffic.count(f"{name}_down", size)
        for name, parcel in received.keep.items():
            if (place, parcel.digest) not in self._held:
                self._held.add((place, parcel.digest))
                self.traffic.count(f"{name}_down", len(parcel.blob()))

    def _passed(self, ask: Ask) -> Passed:
        """Return an ask as devices receive it, and the bytes of what comes each time, by name."""
        arrays = self.codec.encode(ask.state)
        beside = {name: FP32.encode(dict(state)) for name, state in ask.beside.items()}
        sizes = {name: encoded_bytes(sent) for name, sent in {ask.sends: arrays, **beside}.items()}
        return replace(ask, state=self.codec.decode(arrays, ask.state)), sizes

    def _answer(self, turn: tuple[int, int], place: int, sent: Ask, received: Ask) -> Answer:
        memory = Memory(self.store, place, self._run, turn, self.keep_last)
        device = Device(place, turn[0], self.roster.seed, self.load, memory)
        with time_limit(self.policy.timeout):
            answer = self.half.turn(received, device)
        codec = self.codec if sent.like is None else FP32
        update = encoded_answer(codec, received, answer, memory)
        self.traffic.count(f"{sent.brings}_up", encoded_bytes(update))
        state = decoded_answer(codec, sent, update)
        who = f"device {place}"
        check_values(state, who)
        count = check_count(int(answer.count), who)
        answer = replace(answer, state=state)
        self._judge.check(sent, answer, {place: count}, who)
        if memory.renewed:
            self._judge.note_renewed(turn[0], [place])
        return answer
