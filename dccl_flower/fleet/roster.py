"""The devices of a federation: who is asked in a round, and by when they answer."""

from __future__ import annotations

from collections.abc import Callable

from dccl_flower.codecs import Codec
from dccl_flower.fleet.cohorts import Cohort, Cohorts, Rules, TimedCohorts
from dccl_flower.fleet.faults import FaultPolicy, RoundStopped, Verdict
from dccl_flower.fleet.profiles import Fleet
from dccl_flower.fleet.tiers import Tiers, Workload


class Roster:
    """Devices ``0 .. num_devices - 1``, of which each round takes ``per_round``, by default all.

    With a fleet the devices are of tiers and a virtual clock decides who answers in time. Raises
    ValueError for a cohort that the devices cannot fill.
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
        self._plain = Cohorts(num_devices, self.per_round, seed)
        self._timed: TimedCohorts | None = None

    @property
    def has_several_widths(self) -> bool:
        """Tell whether devices train models narrower than the server's."""
        return self.fleet is not None and any(t.co_share != 1 for t in self.fleet.tiers)

    def prepare(self, workload: Callable[[], Workload], codec: Codec) -> None:
        """Learn what a turn takes devices of each tier, where there are tiers.

        Raises ConfError where no tier can train the model.
        """
        if self.fleet is not None:
            tiers = Tiers(self.fleet, workload(), codec)
            work = tiers.work, tiers.memory
            self._timed = TimedCohorts(self._plain, self.fleet, self._rules, *work)

    def draw(self, server_round: int, policy: FaultPolicy) -> Cohort:
        """Return a round's cohort.

        Raises RoundStopped where fewer would answer in time than the policy goes on with.
        """
        cohort = (self._timed or self._plain).draw(server_round)
        verdict = policy.judge(range(self.per_round), cohort.devices)
        if cohort.virtual_seconds is None or verdict is Verdict.GO:
            return cohort
        answered, late, gone = map(len, (cohort.devices, cohort.late, cohort.gone))
        raise RoundStopped(
            f"round {server_round}: {answered} of {self.per_round} devices answered within "
            f"{cohort.virtual_seconds:.3g} virtual seconds (asked {answered + late + gone}, "
            f"late {late}, gone {gone}); rounds.min_replies={policy.min_replies} asks for more"
        )

    def draw_evaluators(self, share: float, server_round: int) -> list[int]:
        """Return a share of all devices, at least one, drawn for a round's evaluation."""
        size = max(1, round(self.num_devices * share))
        return self._plain.draw_from(range(self.num_devices), "evaluate", server_round, size)
