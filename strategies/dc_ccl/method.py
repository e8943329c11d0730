"""DC-CCL, the server's half: a round from top to bottom.

Ding, Niu, Wu, Tang, Lyu and Chen, "DC-CCL: Device-Cloud Collaborative Controlled Learning for
Large Vision Models", arXiv 2303.10361.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dccl_flower.config import TwoSidedRoundsConf
from dccl_flower.device_store import Parcel
from dccl_flower.fleet.profiles import Fleet
from dccl_flower.fleet.tiers import Workload
from dccl_flower.learning.controlled import STATISTICS, LocalRecipe, late_statistics, round_recipe
from dccl_flower.learning.evaluate import Scorer
from dccl_flower.learning.fusion import Copy, Fusion, FusionRule, State, average
from dccl_flower.learning.head_tuning import apply_head_gradient, head_part
from dccl_flower.learning.losses import LOSSES
from dccl_flower.learning.server_update import ServerUpdate
from dccl_flower.learning.widths import Widths, level
from dccl_flower.method import Ask, Round
from dccl_flower.models.frozen import load_exchanged
from dccl_flower.strategies.answers import CLASS_COUNTS, copies_of, devices_of
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.turns import Score, Train, TuneHead

logger = logging.getLogger("dccl_flower")


@dataclass(frozen=True)
class Settings:
    """How both sides train and what is made of their copies.

    ``statistics`` says what batch norms do, once ``freeze_statistics_after`` of the rounds is over:
    see LocalRecipe; ``fused`` and ``mixed`` need a fusion with pooled statistics. ``exemplars`` are
    cloud samples that go down once, chosen ``random`` or ``herded``. Raises ValueError for a name
    that is not known.
    """

    loss: str = "ce"
    fusion: FusionRule = field(default_factory=Fusion)
    statistics: str = "batch"
    head_tuning: bool = False
    exemplars: int = 0
    exemplar_choice: str = "random"

    def __post_init__(self) -> None:
        for key, known in (("loss", tuple(LOSSES)), ("statistics", STATISTICS)):
            if (given := getattr(self, key)) not in known:
                raise ValueError(f"{key}={given!r}: expected one of {', '.join(known)}")


class DcCclServer:
    """Devices and cloud train copies of a co-submodel under a mimic; a fusion rule joins them.

    The cloud pretrains and distils unless it is prepared already. With a ``fleet`` devices train
    the share of the width that their tier says. ``prepare`` takes the place of the cloud's own.
    """

    def __init__(
        self,
        cloud: Cloud,
        settings: Settings | None = None,
        rounds: TwoSidedRoundsConf | None = None,
        fleet: Fleet | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.cloud = cloud
        self.settings = settings or Settings()
        self.rounds = rounds or TwoSidedRoundsConf()
        self._fleet = fleet
        if self._shares != {1.0} and (self.settings.head_tuning or self.rounds.scaffold):
            raise ValueError("tiers with co_share below 1: not with head tuning or SCAFFOLD")
        self._update = ServerUpdate(self.rounds, self.settings.fusion, cloud.head)
        self._prepare = prepare or cloud.prepare
        self._test: tuple[Any, ...] = ()
        self._keep: dict[str, Parcel] = {}
        self._widths: Widths | None = None
        # A thread takes up torch's thread count when it first computes, whatever it is by then.
        threads = (torch.get_num_threads(),)
        self._thread = ThreadPoolExecutor(1, "cloud", torch.set_num_threads, threads)

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Train on both sides, fuse, and tune the head where asked for."""
        statistics = late_statistics(self.rounds, number, self.settings.statistics)
        recipe = round_recipe(self.rounds, number, statistics)
        # Each device trains its part of the co-submodel on its own samples, under the control.
        asks = self._training(state, devices, recipe)
        # Meanwhile the cloud does the same with its samples, in the background.
        own = self._train_cloud(state, number, recipe)
        answers = yield asks
        # Copies of narrow widths are filled up with the mean of those who hold an entry.
        cloud = self._cloud_copy(own)
        copies = level(copies_of(answers.values()), cloud.state if cloud else state)
        # The fusion rule joins both sides; what the server remembers acts on the change.
        state = self._update.next_state(state, cloud, copies, recipe)
        # Head tuning is a second question: everybody's gradient of the last layer alone.
        who = devices_of(answers.values())
        for step in range(self.rounds.head_tuning_steps if self.settings.head_tuning else 0):
            gradients = yield self._tuning(state, who, step)
            state = self._step_head(state, copies_of(gradients.values()), number, step)
        return state

    def prepare(self) -> None:
        """Pretrain, distil, and pack what devices are sent once."""
        self._prepare()
        settings = self.settings
        if not self._keep:
            states = self.cloud.control_states()
            if settings.exemplars > 0:
                choice = settings.exemplar_choice
                states["exemplars"] = self.cloud.exemplars(settings.exemplars, choice)
            self._keep = {name: Parcel.of(held) for name, held in states.items()}
            for name in (name for name in states if name.startswith("cloud")):
                logger.warning("%s, a part of the cloud submodel, goes to devices", name)

    def initial_state(self) -> State:
        """Return the co-submodel's first state."""
        return self.cloud.initial_co_state()

    def plan(self, num_rounds: int) -> None:
        """Let the schedule of rates follow the number of rounds."""
        self.rounds = replace(self.rounds, count=num_rounds)

    def workload(self) -> Workload:
        """Return what a turn takes a device."""
        cloud, example = self.cloud, self.cloud.example()
        self._widths = Widths(cloud.co_submodel, example, self._shares)
        keep = sum(len(parcel.blob()) for parcel in self._keep.values())
        has_exemplars = self.settings.exemplars > 0
        return workload(self._widths, cloud.control, example, self.rounds, has_exemplars, keep)

    def evaluation(self, number: int, state: State, devices: Sequence[int]) -> Mapping[int, Ask]:
        """Ask devices to score control + co."""
        return self._by_width(state, devices, Score)

    def scores(self, state: State) -> Iterator[tuple[str, float]]:
        """Yield the accuracies of cloud + co, and what the devices' own sum lies below it."""
        if self._test:
            scores, mimic_co = self.scorer.served(state)
            yield from asdict(scores).items()
            yield "accuracy_mimic_co", mimic_co
            yield "plug_in_gap", scores.accuracy - mimic_co

    def references(self) -> Mapping[str, Mapping[str, float]]:
        """Return the scores of cloud submodel and mimic alone, and how close the mimic comes."""
        return self.scorer.references() if self._test else {}

    def score_on(self, loader: Any, cloud_classes: list[int], device_classes: list[int]) -> None:
        """Score on these images from now on, by the classes of either side."""
        self._test = (loader, cloud_classes, device_classes)

    @cached_property
    def scorer(self) -> Scorer:
        """What scores served models; the cloud is prepared first."""
        self._prepare()
        return self.cloud.scorer(*self._test)

    def state_dict(self, state: State) -> dict[str, State]:
        """Return the three submodels by role."""
        load_exchanged(self.cloud.co_submodel, state)
        return self.cloud.state_dict()

    @property
    def _shares(self) -> set[float]:
        return {1.0} if self._fleet is None else {tier.co_share for tier in self._fleet.tiers}

    def _training(
        self, state: State, devices: Sequence[int], recipe: LocalRecipe
    ) -> dict[int, Ask]:
        settings, fusion = self.settings, self.settings.fusion
        _, correction = self._update.corrections()
        _, other = self._update.other_sides()
        beside = {"correction": correction, "statistics_cloud": dict(other.statistics)}
        tells = getattr(fusion, "needs_class_counts", False)

        def turn(width: float) -> Train:
            own = self._update.fusion
            merging = own if isinstance(own, Fusion) else Fusion()
            keeps = self.rounds.keep_momentum
            return Train(recipe, settings.loss, keeps, tells, other.own_share, width, merging)

        wants = (CLASS_COUNTS,) if tells else ()
        return self._by_width(state, devices, turn, {k: v for k, v in beside.items() if v}, wants)

    def _tuning(self, state: State, devices: Sequence[int], step: int) -> dict[int, Ask]:
        turn = TuneHead(self.rounds.local_steps, self.settings.loss, step)
        like = head_part(self.cloud.co_submodel, state)
        ask = Ask(state, turn, keep=self._keep, like=like, sends="co", brings="head_gradient")
        return dict.fromkeys(devices, ask)

    def _by_width(
        self,
        state: State,
        devices: Sequence[int],
        turn: Callable[[float], Any],
        beside: Mapping[str, State] | None = None,
        wants: Sequence[str] = (),
    ) -> dict[int, Ask]:
        """Return an ask a width, of which each device gets that of its tier."""
        asks, given, co = {}, beside or {}, "co"
        for share in self._shares:
            whole = share == 1 or self._widths is None
            part = state if whole or not self._widths else self._widths.part_of(state, share)
            asks[share] = Ask(part, turn(share), given, self._keep, None, wants, co, co)
        if self._fleet is None:
            return dict.fromkeys(devices, asks[1.0])
        return {device: asks[self._fleet.tier_of(device).co_share] for device in devices}

    def _train_cloud(self, state: State, number: int, recipe: LocalRecipe) -> Future[State] | None:
        if self.rounds.cloud_weight == 0:
            return None
        correction, _ = self._update.corrections()
        other, _ = self._update.other_sides()
        arguments = (correction, self.rounds.keep_momentum, other)
        loss = self.settings.loss
        return self._thread.submit(self.cloud.train_co, state, loss, recipe, number, *arguments)

    def _cloud_copy(self, own: Future[State] | None) -> Copy | None:
        if own is None:
            return None
        tells = getattr(self.settings.fusion, "needs_class_counts", False)
        return Copy(own.result(), 0, self.cloud.class_counts() if tells else None)

    def _step_head(self, state: State, gradients: Sequence[Copy], number: int, step: int) -> State:
        """Step the head along the gradient of everybody's samples, fused as copies are."""
        rounds, own = self.rounds, None
        if rounds.cloud_weight > 0:
            asked = (self.settings.loss, rounds.local_steps, number, step)
            own = Copy(self.cloud.head_gradient(state, *asked), 0)
        gradient = average(own, gradients, rounds.cloud_weight)
        return apply_head_gradient(state, gradient, rounds.head_tuning_lr)


def workload(
    widths: Widths,
    control: nn.Module,
    example: Tensor,
    rounds: TwoSidedRoundsConf,
    has_exemplars: bool,
    keep_bytes: int = 0,
) -> Workload:
    """Return what a turn takes a device that trains under a control; exemplars double a batch."""
    batch_size = rounds.device_batch_size * (2 if has_exemplars else 1)
    images = rounds.local_steps * batch_size
    return Workload(widths, example, images, batch_size, rounds.momentum > 0, control, keep_bytes)
