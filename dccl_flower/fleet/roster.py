"""Who takes part in a round: by a seeded draw, or by device profiles and a virtual clock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dccl_flower.fleet.clock import Cohort, close_round, over_sampled, turn
from dccl_flower.fleet.judge import FaultPolicy, RoundStopped
from dccl_flower.fleet.profiles import Fleet
from dccl_flower.fleet.tiers import TurnCost, fitting_tiers
from dccl_flower.seeds import numpy_generator

logger = logging.getLogger("dccl_flower")


@dataclass(frozen=True)
class Rules:
    """When a round ends: how many more than the cohort are asked, and how long they may take."""

    over_sampling: float = 1.0
    deadline: float | None = None


class Roster:
    """Devices ``0 .. num_devices - 1``, of which each round takes ``per_round``, by default all.

    With a fleet the devices are of tiers: those that are there and have the memory are asked, and
    the first to answer count; ``answered`` are all that ever did. Raises ValueError for a cohort
    that the devices cannot fill.
    """

    def __init__(
        self,
        num_devices: int,
        per_round: int | None = None,
        seed: int = 0,
        fleet: Fleet | None = None,
        rules: Rules | None = None,
    ) -> None:
        self.num_devices = num_devices
        self.per_round = num_devices if per_round is None else per_round
        self.seed = seed
        self.fleet = fleet
        self._rules = rules or Rules()
        self._costs: Mapping[float, TurnCost] = {}
        self._fitting: set[str] = set()
        self.answered: set[int] = set()
        if not 1 <= self.per_round <= num_devices:
            raise ValueError(f"devices_per_round={per_round}: must lie in 1..{num_devices}")

    def prepare(self, costs: Callable[[Fleet], Mapping[float, TurnCost]]) -> None:
        """Learn what turns take, by share of the width, where there are tiers.

        Raises ConfError where no tier can train the model.
        """
        if self.fleet is None:
            return
        self._costs = costs(self.fleet)
        self._fitting = fitting_tiers(self.fleet, self._costs)
        for tier in self.fleet.tiers:
            if tier.name not in self._fitting:
                need = self._costs[tier.co_share].memory / 1e6
                given = f"tier {tier.name} has {tier.memory_mb:g} MB"
                logger.warning("%s and training takes %.1f MB: never picked", given, need)

    def draw(self, server_round: int, policy: FaultPolicy) -> Cohort:
        """Return a round's cohort: those that answer in time, before it is known what.

        Raises RoundStopped where fewer would than the policy goes on with.
        """
        if self.fleet is None:
            everybody = range(self.num_devices)
            return Cohort(self._drawn(everybody, "cohort", server_round, self.per_round))
        cohort = self._timed(self.fleet, server_round)
        if policy.is_enough(len(cohort.devices), self.per_round):
            return cohort
        raise RoundStopped(
            f"round {server_round}: {len(cohort.devices)} of {self.per_round} devices answered "
            f"within {cohort.virtual_seconds:.3g} virtual seconds (asked {len(cohort.asked)}, "
            f"late {len(cohort.late)}, gone {len(cohort.gone)}); "
            f"rounds.min_replies={policy.min_replies} asks for more"
        )

    def draw_evaluators(self, share: float, server_round: int) -> list[int]:
        """Return a share of all devices, at least one, drawn for a round's evaluation."""
        size = max(1, round(self.num_devices * share))
        return self._drawn(range(self.num_devices), "evaluate", server_round, size)

    def _timed(self, fleet: Fleet, server_round: int) -> Cohort:
        there = [
            device
            for device in range(self.num_devices)
            if fleet.tier_of(device).name in self._fitting
            and fleet.is_available(device, server_round)
        ]
        size = min(len(there), over_sampled(self.per_round, self._rules.over_sampling))
        turns = []
        for device in self._drawn(there, "cohort", server_round, size):
            tier = fleet.tier_of(device)
            cost = self._costs[tier.co_share]
            work = cost.later if device in self.answered else cost.first
            turns.append(turn(device, tier, work, fleet.drops_out(device, server_round)))
        cohort = close_round(turns, self.per_round, self._rules.deadline)
        self.answered.update(cohort.devices)
        return cohort

    def _drawn(
        self, devices: Sequence[int], purpose: str, server_round: int, size: int
    ) -> list[int]:
        draw = numpy_generator(self.seed, purpose, "round", server_round)
        return sorted(draw.choice(devices, size, replace=False).tolist())
