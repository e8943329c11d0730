"""Carry the rounds of any method over Flower: hooks only, in the order of a round."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg, Result

from dccl_flower.codecs import FP32, Codec, State
from dccl_flower.engine import RoundFacts
from dccl_flower.fleet.clock import Cohort
from dccl_flower.fleet.roster import FaultPolicy, Roster, RoundStopped
from dccl_flower.flower.courier import TRAIN, Courier, Errand
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.letters import Letter, Reply
from dccl_flower.flower.nodes import NodeDirectory, check_node_count
from dccl_flower.flower.wire import to_arrays, to_state
from dccl_flower.method import Answer, Ask, Method, Round, ScoresOnDevices

AGAIN = "train.again"  # the type of messages of a round's later exchanges


class Rounds(FedAvg):
    """Ask the devices of each round what a method yields, and hand it their answers.

    ``arrays`` is the method's state of record, by ``codec`` where that is exact. ``num_nodes`` says
    how many nodes to wait for (a simulation knows). ``devices_per_node`` lets a message speak to
    several devices of a node, whose answers the worker merges. Raises AggregationError where
    ``policy`` stops a round, and ValueError for what differential privacy does not cover: a second
    exchange in a round, tensors beside a device's own copy, and copies that are not exact, whole
    and of one device each.
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
        self._policy = policy or FaultPolicy()
        self._num_nodes = num_nodes
        self._devices_per_node = devices_per_node
        self._run = uuid4().hex[:16]
        self._like: State = {}
        self._of_record: tuple[State, ArrayRecord] | None = None
        self._courier: Courier | None = None
        self._round: Round | None = None
        self._errand: Errand | None = None
        self._is_private = False

    def summary(self) -> None:
        """Log what the rounds will do."""
        roster, logger = self.roster, logging.getLogger("flwr")
        logger.info("\t└──> Devices: %d, a round: %d", roster.num_devices, roster.per_round)

    def start(  # type: ignore[override]
        self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, **options: Any
    ) -> Result:
        """Run the rounds as Flower does, once the method knows how many there will be.

        A wrapper for differential privacy runs rounds of its own: then the schedule follows the
        method's own count.
        """
        self.method.plan(num_rounds)
        return super().start(grid, initial_arrays, num_rounds, **options)

    def initial_arrays(self) -> ArrayRecord:
        """Return the method's first state, for ``start(initial_arrays=...)``."""
        self._like = self.method.initial_state()
        return self._arrays(self._like)

    def state(self, arrays: ArrayRecord) -> State:
        """Return the tensors, by name, that ``arrays`` of this strategy stand for."""
        if self._of_record is not None and self._of_record[1] is arrays:
            return self._of_record[0]
        self._like = self._like or self.method.initial_state()
        return to_state(arrays, self._like, self._format)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort and send it the method's first question of the round."""
        state = self.state(arrays)
        self._is_private = self._is_private or self._shows_privacy(arrays, state, config)
        if self._is_private:
            self._refuse_inexact(state)
        courier = self._meet(grid)
        try:
            self.cohort = self.roster.draw(server_round, self._policy)
        except RoundStopped as error:
            raise AggregationError(str(error)) from error
        self._round = self.method.round(server_round, state, self.cohort.asked)
        asks = next(self._round)
        if self._is_private:
            self._refuse_uncovered(asks)
        letters = self._letters(courier, asks, server_round, (state, arrays))
        counting = {device: letters[device] for device in self.cohort.devices}
        courier.count_unanswered({d: letters[d] for d in asks if d not in counting})
        self._errand = courier.send(counting, TRAIN, dict(config))
        return self._errand.messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the answers to the method, ask whatever else it asks, and return its next state."""
        assert self._courier is not None
        assert self._errand is not None
        assert self._round is not None
        self.replies = answered = self._courier.read(self._errand, replies)
        try:
            while True:
                asks = self._round.send(_answers(answered))
                if self._is_private:
                    raise ValueError(f"a second exchange: {NOT_COVERED}")
                letters = self._letters(self._courier, asks, server_round)
                answered = self._courier.ask(letters, AGAIN)
        except StopIteration as end:
            arrays = self._arrays(end.value)
        contents = [content for reply in self.replies for content in reply.contents]
        return arrays, self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have a cohort score the state on its own samples, where asked for at all."""
        if not isinstance(self.method, ScoresOnDevices) or self.fraction_evaluate == 0:
            return []
        cohort = self.roster.draw_evaluators(self.fraction_evaluate, server_round)
        state, courier = self.state(arrays), self._meet(grid)
        asks = self.method.evaluation(server_round, state, cohort)
        letters = self._letters(courier, asks, server_round, (state, arrays))
        return courier.send(letters, "evaluate", dict(config)).messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the devices' scores by sample count."""
        by_device = {}
        for reply in replies:
            if reply.has_content():
                self.ledger.received(reply.content)
                (metrics,) = reply.content.metric_records.values()
                by_device[metrics.pop("device")] = reply
        in_order = [by_device[device] for device in sorted(by_device)]
        return super().aggregate_evaluate(server_round, in_order)

    def facts(self) -> RoundFacts:
        """Tell of the last round; bytes are those since the last call."""
        devices = sorted(device for reply in self.replies for device in reply.devices)
        peak = max((reply.peak_rss_mb for reply in self.replies), default=0.0)
        down, up = self.ledger.close_round()
        clock = self.cohort
        return RoundFacts(
            devices, down, up, clock.virtual_seconds, clock.late, clock.gone, worker_peak_mb=peak
        )

    @property
    def _format(self) -> Codec:
        """How the state of record is kept between rounds: exactly, whatever the wire does."""
        return self._codec if self._codec.is_exact else FP32

    def _arrays(self, state: State) -> ArrayRecord:
        arrays = to_arrays(state, self._format)
        self._of_record = (state, arrays)
        return arrays

    def _meet(self, grid: Grid) -> Courier:
        """Do once what takes long: prepare the method, and learn which node plays which device."""
        if self._courier is None:
            num_devices = self.roster.num_devices
            check_node_count(len(list(grid.get_node_ids())), num_devices)
            self.method.prepare()
            self.roster.prepare(self.method.workload, self._codec)
            directory = NodeDirectory(grid, num_devices, self.ledger, self._num_nodes)
            carry = (self.ledger, self._codec, self._policy, self._devices_per_node)
            self._courier = Courier(grid, directory, *carry)
        return self._courier

    def _letters(
        self,
        courier: Courier,
        asks: Mapping[int, Ask],
        server_round: int,
        known: tuple[State, ArrayRecord] | None = None,
    ) -> dict[int, Letter]:
        common = {"server-round": server_round, "seed": self.roster.seed, "run": self._run}
        return courier.letters(asks, common, known)

    def _shows_privacy(self, arrays: ArrayRecord, state: State, config: ConfigRecord) -> bool:
        """Tell whether a wrapper for differential privacy is at work.

        Client-side ones announce themselves in the config; server-side ones show by arrays that
        are not those that were last returned.
        """
        if "clipping_norm" in config:
            return True
        if self._of_record is None or self._of_record[1] is arrays:
            return False
        return any(not torch.equal(t, state[name]) for name, t in self._of_record[0].items())

    def _refuse_inexact(self, state: State) -> None:
        if not self._codec.is_exact:
            raise ValueError(f"codec={self._codec.name}: {NOT_COVERED}")
        if self._devices_per_node != 1:
            raise ValueError(f"devices_per_node={self._devices_per_node}: {NOT_COVERED}")
        fleet = self.roster.fleet
        if fleet is not None and any(tier.co_share != 1 for tier in fleet.tiers):
            raise ValueError(f"tiers with co_share below 1: {NOT_COVERED}")
        if any(name.endswith("running_var") for name in state):
            raise ValueError(
                "noise breaks batch statistics: use group norm with differential privacy"
            )

    def _refuse_uncovered(self, asks: Mapping[int, Ask]) -> None:
        for ask in asks.values():
            if ask.wants:
                raise ValueError(f"{', '.join(ask.wants)} of devices: {NOT_COVERED}")


NOT_COVERED = "not with differential privacy, which does not cover it"


def _answers(replies: Sequence[Reply]) -> dict[int, Answer]:
    return {reply.devices[0]: reply.answer for reply in replies}
