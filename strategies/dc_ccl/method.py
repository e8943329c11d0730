"""DC-CCL, the server's half: a round from top to bottom.

Ding, Niu, Wu, Tang, Lyu and Chen, "DC-CCL: Device-Cloud Collaborative Controlled Learning for
Large Vision Models", arXiv 2303.10361.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from dccl_flower.device_store import Parcel
from dccl_flower.fleet.profiles import Fleet, co_shares
from dccl_flower.fleet.tiers import Workload
from dccl_flower.image_config import TwoSidedRoundsConf
from dccl_flower.learning.controlled import STATISTICS, LocalRecipe, late_statistics, round_recipe
from dccl_flower.learning.evaluate import Scorer
from dccl_flower.learning.fusion import Copy, Fusion, FusionRule, State, average
from dccl_flower.learning.head_tuning import apply_head_gradient, head_part
from dccl_flower.learning.losses import LOSSES
from dccl_flower.learning.server_update import ServerUpdate
from dccl_flower.learning.widths import Widths, level
from dccl_flower.method import Ask, Numbers, Round
from dccl_flower.models.frozen import load_exchanged
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.device import HEAD_SAMPLES, Score, Train, TuneHead
from dccl_flower.strategies.exchange import CLASS_COUNTS, asks_by_width, copies_of, devices_of
from dccl_flower.strategies.loads import in_steps

PREPARED = ("cloud_submodel", "mimic")
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


@dataclass(eq=False)
class DcCclServer:
    """Devices and cloud train copies of a co-submodel under a mimic; a fusion rule joins them.

    The cloud pretrains and distils unless it is prepared already. With a ``fleet`` devices train
    the share of the width that their tier says. ``test`` scores: images, cloud classes, device
    classes.
    """

    cloud: Cloud
    settings: Settings = field(default_factory=Settings)
    rounds: TwoSidedRoundsConf = field(default_factory=TwoSidedRoundsConf)
    fleet: Fleet | None = None
    test: tuple[Any, list[int], list[int]] | None = None

    def __post_init__(self) -> None:
        if co_shares(self.fleet) != {1.0} and (self.settings.head_tuning or self.rounds.scaffold):
            raise ValueError("tiers with co_share below 1: not with head tuning or SCAFFOLD")
        fusion = self.settings.fusion
        self._update = ServerUpdate(self.rounds, fusion, self.cloud.head)
        self._tells_classes = getattr(fusion, "needs_class_counts", False)
        self._keep: dict[str, Parcel] = {}
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
        own = self._thread.submit(self._train_cloud, state, recipe, number)
        answers = yield asks
        # Copies of narrow widths are filled up with the mean of those who hold an entry.
        cloud = own.result()
        copies = level(copies_of(answers.values()), cloud.state if cloud else state)
        # The fusion rule joins both sides; what the server remembers acts on the change.
        state = self._update.next_state(state, cloud, copies, recipe)
        # Head tuning is a second question: everybody's gradient of the last layer alone.
        who = devices_of(answers.values())
        for step in range(self.rounds.head_tuning_steps if self.settings.head_tuning else 0):
            gradients = yield self._tuning(state, who, step)
            # Of those who hold few samples there are none.
            given = [each for each in gradients.values() if each.beside[HEAD_SAMPLES].any()]
            state = self._step_head(state, copies_of(given), number, step)
        return state

    def prepare(self) -> None:
        """Pretrain, distil, and pack what devices are sent once."""
        self.cloud.prepare()
        if self._keep:
            return
        states = self.cloud.control_states()
        if self.settings.exemplars > 0:
            chosen = self.settings.exemplars, self.settings.exemplar_choice
            states["exemplars"] = self.cloud.exemplars(*chosen)
        self._keep = {name: Parcel.of(held) for name, held in states.items()}
        for name in (name for name in states if name.startswith("cloud")):
            logger.warning("%s, a part of the cloud submodel, goes to devices", name)

    def initial_state(self) -> State:
        """Return the co-submodel's first state."""
        return self.cloud.initial_co_state()

    def plan(self, num_rounds: int) -> None:
        """Let the schedule of rates follow the number of rounds."""
        self.rounds = replace(self.rounds, count=num_rounds)

    def prepared(self) -> dict[str, State]:
        """Return cloud submodel and mimic."""
        return {role: state for role, state in self.cloud.state_dict().items() if role in PREPARED}

    def adopt(self, prepared: Mapping[str, State]) -> None:
        """Take over cloud submodel and mimic."""
        self.cloud.adopt(*(dict(prepared[role]) for role in PREPARED))

    def memory(self) -> dict[str, State]:
        """Return the cloud's momentum, and what acts on the fused change."""
        return {"momentum": self.cloud.momentum, **self._update.memory()}

    def remember(self, memory: Mapping[str, State]) -> None:
        """Take over what another server kept."""
        self.cloud.momentum = dict(memory["momentum"])
        self._update.remember(memory)

    def workload(self) -> Workload:
        """Return what a turn takes a device."""
        models = self._widths, self.cloud.example, self.cloud.control
        keep_bytes = sum(len(parcel.blob()) for parcel in self._keep.values())
        return in_steps(self.rounds, *models, batch_factor(self.settings.exemplars), keep_bytes)

    def evaluation(self, number: int, state: State, devices: Sequence[int]) -> Mapping[int, Ask]:
        """Ask devices to score control + co."""
        return self._asks(state, devices, Score)

    def scores(self, state: State) -> Iterator[tuple[str, float]]:
        """Yield the accuracies of cloud + co, and what the devices' own sum lies below it."""
        if self.test is not None:
            scores, mimic_co = self._scorer.served(state)
            yield from asdict(scores).items()
            yield "accuracy_mimic_co", mimic_co
            yield "plug_in_gap", scores.accuracy - mimic_co

    def references(self) -> Mapping[str, Mapping[str, float]]:
        """Return the scores of cloud submodel and mimic alone, and how close the mimic comes."""
        return {} if self.test is None else self._scorer.references()

    def state_dict(self, state: State) -> dict[str, State]:
        """Return the three submodels by role."""
        load_exchanged(self.cloud.co_submodel, state)
        return self.cloud.state_dict()

    @cached_property
    def _scorer(self) -> Scorer:
        assert self.test is not None
        return self.cloud.scorer(*self.test)

    @cached_property
    def _widths(self) -> Widths:
        return Widths(self.cloud.co_submodel, self.cloud.example, co_shares(self.fleet))

    def _asks(
        self, state: State, devices: Sequence[int], turn: Callable[[float], Any], **more: Any
    ) -> dict[int, Ask]:
        def ask(width: float) -> Ask:
            part = state if width == 1 else self._widths.part_of(state, width)
            return Ask(part, turn(width), keep=self._keep, sends="co", brings="co", **more)

        return asks_by_width(devices, self.fleet, ask)

    def _training(
        self, state: State, devices: Sequence[int], recipe: LocalRecipe
    ) -> dict[int, Ask]:
        loss, keeps, tells = self.settings.loss, self.rounds.keep_momentum, self._tells_classes
        fusion = self._update.fusion
        merging = fusion if isinstance(fusion, Fusion) else Fusion()
        _, correction = self._update.corrections()
        _, other = self._update.other_sides()
        beside = {"correction": correction, "statistics_cloud": dict(other.statistics)}

        def turn(width: float) -> Train:
            return Train(recipe, loss, keeps, tells, other.own_share, merging, width)

        given = {name: held for name, held in beside.items() if held}
        wants = {CLASS_COUNTS: Numbers(self.cloud.num_classes)} if tells else {}
        return self._asks(state, devices, turn, beside=given, wants=wants)

    def _tuning(self, state: State, devices: Sequence[int], step: int) -> dict[int, Ask]:
        turn = TuneHead(self.rounds.local_steps, self.settings.loss, step)
        like = head_part(self.cloud.co_submodel, state)
        wants = {HEAD_SAMPLES: Numbers(1)}
        ask = Ask(state, turn, {}, self._keep, like, wants, "co", "head_gradient")
        return dict.fromkeys(devices, ask)

    def _train_cloud(self, state: State, recipe: LocalRecipe, number: int) -> Copy | None:
        """Return the cloud's own copy, where it has a say."""
        if self.rounds.cloud_weight == 0:
            return None
        correction, _ = self._update.corrections()
        other, _ = self._update.other_sides()
        told = (correction, self.rounds.keep_momentum, other)
        trained = self.cloud.train_co(state, self.settings.loss, recipe, number, *told)
        return Copy(trained, 0, self.cloud.class_counts() if self._tells_classes else None)

    def _step_head(self, state: State, gradients: Sequence[Copy], number: int, step: int) -> State:
        """Step the head along the gradient of everybody's samples, fused as copies are."""
        if not gradients:
            return state
        rounds, own = self.rounds, None
        if rounds.cloud_weight > 0:
            asked = (self.settings.loss, rounds.local_steps, number, step)
            own = Copy(self.cloud.head_gradient(state, *asked), 0)
        gradient = average(own, gradients, rounds.cloud_weight)
        return apply_head_gradient(state, gradient, rounds.head_tuning_lr)


def batch_factor(exemplars: int) -> int:
    """Return how much larger a device's batches are for as many exemplars beside its own images."""
    return 2 if exemplars else 1
