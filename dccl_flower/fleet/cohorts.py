"""Who takes part in a round: by a seeded draw, or by device profiles and a virtual clock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dccl_flower.config import ConfError
from dccl_flower.fleet.clock import Work, close_round, over_sampled, turn
from dccl_flower.fleet.profiles import Fleet, Tier
from dccl_flower.seeds import numpy_generator

logger = logging.getLogger("dccl_flower")


@dataclass(frozen=True)
class Cohort:
    """The devices whose answers count in a round, and what the virtual clock says of it.

    ``late`` and ``gone`` were asked too: they answer after the round's end, or never.
    """

    devices: list[int]
    virtual_seconds: float | None = None
    late: Sequence[int] = ()
    gone: Sequence[int] = ()


class Cohorts:
    """Draw ``size`` of the devices each round, by seed and round alone."""

    def __init__(self, num_devices: int, size: int, seed: int) -> None:
        if not 1 <= size <= num_devices:
            raise ValueError(f"devices_per_round={size}: must lie in 1..{num_devices}")
        self.num_devices = num_devices
        self.size = size
        self.seed = seed

    def draw(self, server_round: int) -> Cohort:
        """Return a round's cohort."""
        return Cohort(self.draw_from(range(self.num_devices), "cohort", server_round, self.size))

    def draw_from(
        self, devices: Sequence[int], purpose: str, server_round: int, size: int
    ) -> list[int]:
        """Return ``size`` of the devices in ascending order."""
        draw = numpy_generator(self.seed, purpose, "round", server_round)
        return sorted(draw.choice(devices, size, replace=False).tolist())


@dataclass(frozen=True)
class Rules:
    """When a round ends: how many more than the cohort are asked, and how long they may take."""

    over_sampling: float = 1.0
    deadline: float | None = None


def fitting_tiers(fleet: Fleet, memory: Callable[[Tier], int]) -> set[str]:
    """Return the names of the tiers that have the memory. Raises ConfError where none has."""
    fitting = {tier.name for tier in fleet.tiers if memory(tier) <= 1e6 * tier.memory_mb}
    if not fitting:
        least = min(memory(tier) for tier in fleet.tiers) / 1e6
        most = max(tier.memory_mb for tier in fleet.tiers)
        raise ConfError(
            f"devices.profiles: no tier fits, the largest has {most:g} MB and training takes at "
            f"least {least:.1f} MB"
        )
    return fitting


class TimedCohorts:
    """Draw among the devices that are there and have the memory; the first to answer count.

    ``work`` tells what a turn takes a tier, the first one of a device or a later one; ``memory``
    how many bytes it takes. Raises ConfError where no tier has that memory.
    """

    def __init__(
        self,
        plain: Cohorts,
        fleet: Fleet,
        rules: Rules,
        work: Callable[[Tier, bool], Work],
        memory: Callable[[Tier], int],
    ) -> None:
        self._plain = plain
        self._fleet = fleet
        self._rules = rules
        self._work = work
        self._fitting = fitting_tiers(fleet, memory)
        self._answered: set[int] = set()
        for tier in fleet.tiers:
            if tier.name not in self._fitting:
                need = memory(tier) / 1e6
                given = f"tier {tier.name} has {tier.memory_mb:g} MB"
                logger.warning("%s and training takes %.1f MB: never picked", given, need)

    def draw(self, server_round: int) -> Cohort:
        """Return a round's cohort: those that answer in time, before it is known what."""
        there = [
            device
            for device in range(self._plain.num_devices)
            if self._fleet.tier_of(device).name in self._fitting
            and self._fleet.is_available(device, server_round)
        ]
        size = min(len(there), over_sampled(self._plain.size, self._rules.over_sampling))
        asked = self._plain.draw_from(there, "cohort", server_round, size) if there else []
        turns = [
            turn(
                device,
                self._fleet.tier_of(device),
                self._work(self._fleet.tier_of(device), device not in self._answered),
                self._fleet.drops_out(device, server_round),
            )
            for device in asked
        ]
        outcome = close_round(turns, self._plain.size, self._rules.deadline)
        self._answered |= set(outcome.arrived)
        return Cohort(outcome.arrived, outcome.seconds, outcome.late, outcome.gone)
