"""The devices of a federation: who takes part in a round, and what each of them is sent."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.serverapp.exception import AggregationError

from dccl_flower.config import RoundsConf
from dccl_flower.fleet.cohorts import Cohort, Cohorts, Rules, TimedCohorts
from dccl_flower.fleet.profiles import Fleet
from dccl_flower.fleet.tiers import Tiers
from dccl_flower.flower.replies import Reader
from dccl_flower.learning.fusion import State
from dccl_flower.strategies.dc_ccl.cloud import Cloud


class Roster:
    """Devices ``0 .. num_devices - 1``, of which each round takes ``per_round``, by default all.

    With a fleet the devices are of tiers and a virtual clock decides who answers in time. Raises
    ValueError for a cohort that the devices cannot fill.
    """

    def __init__(
        self,
        num_devices: int,
        per_round: int | None,
        seed: int,
        rounds: RoundsConf,
        codec: str = "fp32",
        fleet: Fleet | None = None,
        rules: Rules | None = None,
    ) -> None:
        self.num_devices = num_devices
        self.per_round = num_devices if per_round is None else per_round
        self._rounds = rounds
        self._codec = codec
        self._fleet = fleet
        self._rules = rules or Rules()
        self._plain = Cohorts(num_devices, self.per_round, seed)
        self._timed: TimedCohorts | None = None
        self._tiers: Tiers | None = None

    @property
    def has_several_widths(self) -> bool:
        """Tell whether devices train co-submodels narrower than the server's."""
        return self._fleet is not None and any(t.co_share != 1 for t in self._fleet.tiers)

    def prepare(self, cloud: Cloud, blobs: dict[str, bytes]) -> None:
        """Learn what a turn takes devices of each tier, where there are tiers.

        Raises ConfError where no tier can train the co-submodel.
        """
        if self._fleet is None:
            return
        models = (cloud.co_submodel, cloud.control, cloud.example())
        self._tiers = Tiers(self._fleet, *models, self._rounds, blobs, self._codec)
        work, memory = self._tiers.work, self._tiers.memory
        self._timed = TimedCohorts(self._plain, self._fleet, self._rules, work, memory)

    def draw(self, server_round: int) -> Cohort:
        """Return a round's cohort.

        Raises AggregationError where too few devices would answer in time.
        """
        if self._timed is None:
            return self._plain.draw(server_round)
        cohort = self._timed.draw(server_round)
        answered, minimum = len(cohort.devices), self._rounds.min_replies
        if not answered or answered < minimum * self.per_round:
            late, gone = len(cohort.late), len(cohort.gone)
            raise AggregationError(
                f"round {server_round}: {answered} of {self.per_round} devices answered within "
                f"{cohort.virtual_seconds:.3g} virtual seconds (asked {answered + late + gone}, "
                f"late {late}, gone {gone}); rounds.min_replies={minimum} asks for more"
            )
        return cohort

    def draw_evaluators(self, share: float, server_round: int) -> list[int]:
        """Return a share of all devices, at least one, drawn for a round's evaluation."""
        size = max(1, round(self.num_devices * share))
        return self._plain.draw_from(range(self.num_devices), "evaluate", server_round, size)

    def readers(self, devices: Sequence[int], state: State) -> dict[int, Reader]:
        """Return for each device what sends it its part of a state, and reads its reply."""
        if self._fleet is None or self._tiers is None:
            return dict.fromkeys(devices, Reader(state, self._codec))
        by_share: dict[float, Reader] = {}
        for tier in self._fleet.tiers:
            if tier.co_share not in by_share:
                part = self._tiers.part_of(state, tier)
                config = {} if tier.co_share == 1 else {"co-share": tier.co_share}
                by_share[tier.co_share] = Reader(part, self._codec, config)
        return {device: by_share[self._fleet.tier_of(device).co_share] for device in devices}
