"""Carry the rounds of any method over Flower: hooks only, in the order of a round."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import Any
from uuid import uuid4

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg, Result

from dccl_flower.codecs import FP32, Codec, State
from dccl_flower.engine import OpenRound, RoundFacts
from dccl_flower.fleet.clock import Cohort
from dccl_flower.fleet.judge import FaultPolicy, Judge, RoundStopped
from dccl_flower.fleet.roster import Roster
from dccl_flower.fleet.tiers import turn_costs
from dccl_flower.flower.courier import EVALUATE, TRAIN, Courier, Errand
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.letters import KEEP_LAST, Reply
from dccl_flower.flower.nodes import check_node_count
from dccl_flower.flower.privacy import NOT_COVERED, uncovered
from dccl_flower.flower.wire import to_arrays, to_state
from dccl_flower.method import Ask, Method, ScoresOnDevices
from dccl_flower.standing import Standing

AFTER_ALL = 2**31 - 1  # in place of an exchange's number
AGAIN = "train.again"  # the type of messages of a round's later exchanges


class Rounds(FedAvg):
    """Ask the devices of each round what a method yields, and hand it their answers.

    ``arrays`` is the method's state of record, by ``codec`` where that is exact. ``num_nodes`` says
    how many nodes to wait for (a simulation knows). ``devices_per_node`` lets a message speak to
    several devices of a node, whose answers the worker merges. Devices keep what they
    need to be asked for the last ``keep_last`` rounds once more. Raises AggregationError where
    ``policy`` stops a round, and ValueError for what differential privacy does not cover: a second
    exchange in a round, tensors beside a device's own copy, and copies that are not exact, whole
    and of one device each. ``is_private`` says whether it is at work: it is unless :meth:`start`
    runs the rounds itself, on nodes without mods, or somebody says that it is not.
    """

    def __init__(
        self,
        method: Method,
        roster: Roster,
        *,
        codec: Codec = FP32,
        policy: FaultPolicy | None = None,
        num_nodes: int | None = None,
        devices_per_node: int = 1,
        fraction_evaluate: float = 0.0,
        keep_last: int = 1,
    ) -> None:
        if fraction_evaluate and not isinstance(method, ScoresOnDevices):
            raise ValueError(f"fraction_evaluate={fraction_evaluate}: the method does not know how")
        super().__init__(fraction_evaluate=fraction_evaluate)
        self.method = method
        self.roster = roster
        self.ledger = Ledger()
        self.cohort = Cohort([])
        self.replies: list[Reply] = []
        self._codec = codec
        self._judge = Judge(policy or FaultPolicy())
        self._num_nodes = num_nodes
        self._devices_per_node = devices_per_node
        self._keep_last = keep_last
        self._of_record: tuple[State, ArrayRecord] | None = None
        self._courier: Courier | None = None
        self._round: OpenRound | None = None
        self._errand: Errand | None = None
        self._evaluation: Errand | None = None
        self.is_private: bool | None = None
        self.failed: list[Message] = []  # replies that a wrapper has kept to itself
        self._begun: Standing | None = None
        self._run = uuid4().hex[:16]

    @property
    def done(self) -> int:
        """How many rounds were over before the first that Flower counts."""
        return 0 if self._begun is None else self._begun.number

    def go_on(self, standing: Standing) -> None:
        """Begin after the rounds of another object, from the ``memory`` that it had then."""
        self._begun, self._run = standing, standing.engine["run"]
        self.roster.answered = set(standing.engine["answered"])
        self.ledger.go_on(standing.engine["traffic"])

    def memory(self) -> dict[str, Any]:
        """Return plain values from which another object goes on at a round's border."""
        held = {} if self._courier is None else self._courier.held
        pairs = [(device, digest) for device, digests in held.items() for digest in digests]
        return {
            "run": self._run,
            "traffic": dict(self.ledger.totals),
            "answered": sorted(self.roster.answered),
            "held": sorted(pairs),
        }

    def summary(self) -> None:
        """Log what the rounds will do."""
        roster, logger = self.roster, logging.getLogger("flwr")
        logger.info("\t└──> Devices: %d, a round: %d", roster.num_devices, roster.per_round)

    def start(  # type: ignore[override]
        self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, **options: Any
    ) -> Result:
        """Run the rounds that are left as Flower does, once the method knows how many there are.

        A wrapper for differential privacy runs rounds of its own: then the schedule follows the
        method's own count.
        """
        self.method.plan(self.done + num_rounds)
        self.is_private = bool(self.is_private)
        return super().start(grid, initial_arrays, num_rounds, **options)

    def initial_arrays(self) -> ArrayRecord:
        """Return the state to begin with, for ``start(initial_arrays=...)``."""
        begun = self._begun
        return self._arrays(self.method.initial_state() if begun is None else begun.state)

    def state(self, arrays: ArrayRecord) -> State:
        """Return the tensors, by name, that ``arrays`` of this strategy stand for."""
        if self._of_record is not None and self._of_record[1] is arrays:
            return self._of_record[0]
        return to_state(arrays, self._like, self._format)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort and send it the method's first question of the round, if it has one."""
        server_round += self.done
        state = self.state(arrays)
        self.is_private = self.is_private is not False
        if self.is_private:  # before what takes long
            self._refuse_inexact(state)
        courier = self._prepare(grid)
        try:
            self.cohort = self.roster.draw(server_round, self._judge.policy)
        except RoundStopped as error:
            raise AggregationError(str(error)) from error
        self._round = OpenRound(self.method.round(server_round, state, self.cohort.asked))
        self._errand, asks = None, self._round.asks
        if asks is None:
            return []
        if self.is_private or courier.mods_are_there:
            self.is_private = True
            self._refuse_inexact(state)
            _refuse_more_than_updates(asks)
            # What a wrapper clips on the server must not come by another way.
            courier.asks_again = courier.mods_are_there or "clipping_norm" in config
        letters = courier.letters(asks, (server_round, 0), (state, arrays))
        in_time = {d: letters.pop(d) for d in self.cohort.devices if d in asks}
        courier.count_unanswered(letters)
        self._errand = courier.send(in_time, TRAIN, dict(config))
        return self._errand.messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the answers to the method, ask whatever else it asks, and return its next state."""
        assert self._courier is not None
        assert self._round is not None
        server_round += self.done
        if self._errand is None:  # nobody was asked
            self.replies = []
            return self._arrays(self._round.state), None
        self.replies = answered = self._courier.read(self._errand, [*replies, *self.failed])
        for exchange in count(1):
            self._round.answer({reply.devices[0]: reply.answer for reply in answered})
            if self._round.asks is None:
                break
            if self.is_private:
                raise ValueError(f"a second exchange: {NOT_COVERED}")
            letters = self._courier.letters(self._round.asks, (server_round, exchange))
            answered = self._courier.ask(letters, AGAIN)
        contents = [content for reply in self.replies for content in reply.contents]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return self._arrays(self._round.state), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have a cohort score the state on its own samples, where asked for at all."""
        if not isinstance(self.method, ScoresOnDevices) or self.fraction_evaluate == 0:
            return []
        server_round += self.done
        cohort = self.roster.draw_evaluators(self.fraction_evaluate, server_round)
        state, courier = self.state(arrays), self._prepare(grid)
        asks = self.method.evaluation(server_round, state, cohort)
        letters = courier.letters(asks, (server_round, AFTER_ALL), (state, arrays))
        self._evaluation = courier.send(letters, EVALUATE, dict(config))
        return self._evaluation.messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the devices' scores by sample count; the fault policy judges them, too."""
        if self._evaluation is None:
            return None
        assert self._courier is not None
        answered = self._courier.read(self._evaluation, replies)
        self._evaluation = None
        contents = [content for reply in answered for content in reply.contents]
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)

    def facts(self) -> RoundFacts:
        """Tell of the last round; bytes are those since the last call."""
        devices = sorted(device for reply in self.replies for device in reply.devices)
        peak = max((reply.peak_rss_mb for reply in self.replies), default=0.0)
        facts = self.ledger.facts(self.cohort, devices, peak)
        return replace(facts, faults=self._judge.close_round())

    @cached_property
    def _like(self) -> State:
        """Names and shapes of the state of record."""
        return self.method.initial_state()

    @property
    def _format(self) -> Codec:
        """How the state of record is kept between rounds: exactly, whatever the wire does."""
        return self._codec if self._codec.is_exact else FP32

    def _arrays(self, state: State) -> ArrayRecord:
        arrays = to_arrays(state, self._format)
        self._of_record = (state, arrays)
        return arrays

    def _prepare(self, grid: Grid) -> Courier:
        """Do once what takes long, and return who carries the messages."""
        if self._courier is None:
            num_devices = self.roster.num_devices
            check_node_count(len(list(grid.get_node_ids())), num_devices)
            self.method.prepare()
            self.roster.prepare(
                lambda fleet: turn_costs(fleet, self.method.workload(), self._codec)
            )
            self._courier = Courier(
                grid,
                num_devices,
                self.ledger,
                self._codec,
                self._judge,
                self._devices_per_node,
                self._num_nodes,
                {"seed": self.roster.seed, "run": self._run, KEEP_LAST: self._keep_last},
            )
            if self._begun is not None:
                self._meet_again(self._courier, self._begun.engine)
        return self._courier

    def _meet_again(self, courier: Courier, engine: Mapping[str, Any]) -> None:
        """Find the nodes, whose first meeting is counted already."""
        for device, digest in engine["held"]:
            courier.held.setdefault(device, set()).add(digest)
        if courier.nodes:
            self.ledger.go_on(engine["traffic"])

    def _refuse_inexact(self, state: State) -> None:
        policy = self._judge.policy
        given = (self._codec, self._devices_per_node, self.roster.fleet, policy.on_failure)
        for what in uncovered(*given):
            raise ValueError(f"{what}: {NOT_COVERED}")
        if any(name.endswith("running_var") for name in state):
            advice = "use group norm with differential privacy"
            raise ValueError(f"noise breaks batch statistics: {advice}")


def _refuse_more_than_updates(asks: Mapping[int, Ask]) -> None:
    """Raise ValueError for asks whose answers are more, or other, than a trained copy."""
    names = {name for ask in asks.values() for name in (*ask.wants, *ask.beside)}
    if any(ask.like is not None for ask in asks.values()):
        names |= {ask.brings for ask in asks.values()}
    if names:
        raise ValueError(f"{', '.join(sorted(names))} of devices: {NOT_COVERED}")
