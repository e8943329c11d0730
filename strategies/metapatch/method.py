"""MetaPatch's server half, and how both halves are made from a configuration."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dccl_flower.codecs import State
from dccl_flower.data.interactions import RECENT
from dccl_flower.data.samples import Samples
from dccl_flower.fleet.tiers import Load, Workload
from dccl_flower.interaction_experiment import InteractionExperiment, recipe
from dccl_flower.learning.fusion import average
from dccl_flower.learning.metapatch import distil_model, distil_patches, pretrain_patches
from dccl_flower.learning.recommend import fit, predict
from dccl_flower.method import (
    Answer,
    Ask,
    Kinds,
    MethodKind,
    OnProgress,
    Round,
    Served,
    true_ones,
)
from dccl_flower.models.frozen import Exchanged
from dccl_flower.seeds import torch_generator
from dccl_flower.strategies.exchange import copies_of
from dccl_flower.strategies.metapatch.conf import MetaPatchConf, conf_of
from dccl_flower.strategies.metapatch.device import (
    Adapt,
    MetaPatchDevice,
    Score,
    StageOne,
    StageTwo,
)
from dccl_flower.strategies.metapatch.load import turn_load, when_served
from dccl_flower.strategies.metapatch.parts import (
    ENCODER,
    MODEL,
    PATCHES,
    VECTOR,
    Parts,
    copied,
)
from dccl_flower.strategies.ranked import DEVICES, RANKS, SCORES, Ranked

Exchanges = Generator[Mapping[int, Ask], Mapping[int, Answer], None]
NOTHING = torch.zeros(0)


class MetaPatchServer(Ranked):
    """The server's half: it keeps each device's vector, and learns of what these make of its model.

    ``vectors`` has all devices that have ever answered; without MetaPatch they are empty. The
    teacher of a device that did not answer this time is the model of now under its last vector.
    """

    def __init__(self, experiment: InteractionExperiment, on_progress: OnProgress) -> None:
        super().__init__(experiment, on_progress)
        self.conf = conf_of(experiment)
        self.parts = Parts(experiment, self.model)
        self.vectors: dict[int, Tensor] = {}

    def prepare(self) -> None:
        """Train the cloud's model, and the bases where they are not as drawn; only once."""
        if self._is_prepared:
            return
        super().prepare()
        own, experiment = self.conf.adaptation, self.experiment
        if self.parts.has_vectors and own.bases == "pretrained":
            pretrain_patches(
                self.model,
                self.parts.patches,
                experiment.log.num_users,
                experiment.past(),
                recipe(own.pretrain),
                torch_generator(self.conf.seed, "pretrain", PATCHES),
            )

    def initial_state(self) -> State:
        """Return the model and the bases as the cloud first trains them."""
        self.prepare()
        return copied(self.parts.deployed)

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Have devices adapt the model, learn of what they answer, and redeploy it."""
        self.parts.deployed.load(state)
        # Each device fits its vector, or what stands for it, and scores the model that this makes.
        adapt = Adapt(recipe(self.conf.device), self.conf.top_k)
        like = {VECTOR: self.parts.patches.start()} if self.parts.has_vectors else {}
        answers = yield dict.fromkeys(
            devices, Ask(state, adapt, like=like, wants=RANKS, brings=VECTOR)
        )
        self.take(answers.values())
        self.vectors |= {d: each.state.get(VECTOR, NOTHING) for d, each in answers.items()}
        # Stage 1 and stage 2, where the samples are.
        if self.conf.method.raw_samples == "device":
            yield from self._learn_on_devices(list(answers))
        else:
            self._learn_here(number)
        # What devices are sent next; the encoder stays.
        state = copied(self.parts.deployed)
        if self.conf.method.serves != "device":
            is_proxy = self.conf.method.serves == "proxy"
            served = copied(self.parts.proxy if is_proxy else self.parts.alone)
            score = Score(self.conf.top_k, is_proxy)
            ask = Ask(served, score, like={}, wants=RANKS, brings=SCORES)
            scored = yield dict.fromkeys(answers, ask)
            self.take(scored.values())
        return state

    def load(self) -> Load:
        """Return what a turn takes a device with as many samples as devices have in the mean."""
        return turn_load(self.experiment, self.parts)

    def prepared(self) -> dict[str, State]:
        """Return the cloud's first model, and the bases."""
        return {**super().prepared(), PATCHES: self.parts.patches.state_dict()}

    def adopt(self, prepared: Mapping[str, State]) -> None:
        """Take over both."""
        super().adopt(prepared)
        self.parts.patches.load_state_dict(prepared[PATCHES])

    def memory(self) -> dict[str, State]:
        """Return the encoder and all vectors, which no state of record holds, and the scores."""
        devices, vectors = torch.tensor(list(self.vectors)), list(self.vectors.values())
        known = {DEVICES: devices, VECTOR: torch.stack(vectors)} if vectors else {}
        return {**super().memory(), ENCODER: self.parts.encoder.state_dict(), VECTOR: known}

    def remember(self, memory: Mapping[str, State]) -> None:
        """Take over all of them."""
        super().remember(memory)
        self.parts.encoder.load_state_dict(memory[ENCODER])
        if known := memory[VECTOR]:
            self.vectors = dict(zip(known[DEVICES].tolist(), known[VECTOR], strict=True))

    def state_dict(self, state: State) -> dict[str, State]:
        """Return the model, and where devices adapt by MetaPatch the bases and the encoder."""
        self.parts.deployed.load(state)
        modules: dict[str, nn.Module] = {MODEL: self.model}
        if self.parts.has_vectors:
            modules |= {PATCHES: self.parts.patches, ENCODER: self.parts.encoder}
        return {role: module.state_dict() for role, module in modules.items()}

    def _learn_here(self, number: int) -> None:
        """Learn in place of the recent samples of all devices that have answered."""
        cloud, parts, settings = self.conf.cloud, self.parts, self.conf.cloud.distillation()
        if cloud.learns == "nothing":
            return
        samples, vectors = self._gathered()
        stage_1, stage_2 = (
            torch_generator(self.conf.seed, stage, "round", number)
            for stage in ("stage 1", "stage 2")
        )
        how = recipe(cloud.stage_1)
        if cloud.learns == "data":
            fit(self.model, self.model.parameters(), samples, how, stage_1)
            return
        # Of the devices' models as they answered: before the model learns.
        teacher = predict(parts.patched(), samples | {VECTOR: vectors})
        if cloud.model_learns:
            distil_model(self.model, samples, teacher, how, settings, stage_1)
        if cloud.patches_learn:
            how = recipe(cloud.stage_2)
            given = (samples, vectors, teacher, how, settings, stage_2)
            distil_patches(self.model, parts.patches, parts.encoder, *given)

    def _gathered(self) -> tuple[Samples, Tensor]:
        """Return the samples, device by device, and the vector of each one's device."""
        users, log = self.experiment.users, self.experiment.log
        rows = [log.rows_of(int(users[device]), RECENT) for device in self.vectors]
        owned = zip(self.vectors.values(), rows, strict=True)
        vectors = [vector.expand(len(own), -1) for vector, own in owned]
        return self.experiment.samples(np.concatenate(rows)), torch.cat(vectors)

    def _learn_on_devices(self, devices: Sequence[int]) -> Exchanges:
        """Have devices learn the same of their own samples, and average what they learn."""
        cloud, parts = self.conf.cloud, self.parts
        if cloud.model_learns:
            one = StageOne(recipe(cloud.stage_1), cloud.has_teachers)
            ask = Ask(copied(parts.alone), one)
            yield from _averaged(parts.alone, devices, ask)
        if cloud.patches_learn:
            ask = Ask(
                copied(parts.taught),
                StageTwo(recipe(cloud.stage_2)),
                beside={MODEL: copied(parts.alone)},
                sends=PATCHES,
                brings=PATCHES,
            )
            yield from _averaged(parts.taught, devices, ask)


def _averaged(learnt: Exchanged, devices: Sequence[int], ask: Ask) -> Exchanges:
    answers = yield dict.fromkeys(devices, ask)
    learnt.load(average(None, copies_of(answers.values()), 0.0))


def check(experiment: InteractionExperiment) -> Workload:
    """Return what a turn takes a device. Raises ConfError for what does not go together."""
    return MetaPatchServer(experiment, lambda *_: None).workload()


def served(experiment: InteractionExperiment) -> Served:
    """Return the model, and where devices adapt it what of it they serve, with a batch."""
    return when_served(experiment, Parts(experiment, experiment.recommender()))


def kinds(experiment: InteractionExperiment) -> Kinds:
    """Return what passes: models come up only of stages that run on devices."""
    conf = conf_of(experiment)
    on_devices = conf.method.raw_samples == "device"
    teaches_patches = on_devices and conf.cloud.patches_learn
    up = true_ones(
        vector=True,
        scores=conf.method.serves == "cloud",
        model=on_devices and conf.cloud.model_learns,
        patches=teaches_patches,
    )
    return Kinds({MODEL} | ({PATCHES} if teaches_patches else set()), up, {SCORES})


METAPATCH = MethodKind(
    MetaPatchConf,
    InteractionExperiment.open,
    MetaPatchServer,
    MetaPatchDevice,
    check,
    served,
    kinds,
)
