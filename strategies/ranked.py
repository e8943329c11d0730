"""What methods on logs of users and items share: the cloud's first model, and devices' scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor

from dccl_flower.codecs import State
from dccl_flower.data.samples import Samples
from dccl_flower.files import code_digest, content_key
from dccl_flower.fleet.profiles import refuse_widths
from dccl_flower.fleet.tiers import Load, Workload
from dccl_flower.interaction_experiment import InteractionExperiment, recipe
from dccl_flower.learning.ranking import UserScores, gauc, user_scores
from dccl_flower.learning.recommend import Logits, fit, predict
from dccl_flower.method import Answer, DeviceScore, Numbers, OnProgress
from dccl_flower.models.recommender import Recommender
from dccl_flower.seeds import torch_generator
from dccl_flower.strategies.kept import kept_models

SCORES, MODEL, DEVICES = "scores", "model", "devices"
MEANS = ("hit", "ndcg", "mrr")
RANKS = {SCORES: Numbers(len(fields(UserScores)), may_lack=4)}  # all but the count
SCORE_BYTES = 8 * len(fields(UserScores))


def pretrain(model: Recommender, experiment: InteractionExperiment, tell: OnProgress) -> None:
    """Train the cloud's model in place on all users' past, or with ``runtime.reuse`` find it so."""
    conf = experiment.conf

    def train() -> dict[str, State]:
        generator, told = torch_generator(conf.seed, "pretrain"), partial(tell, "pretrain")
        past, how = experiment.past(), recipe(conf.pretrain)
        fit(model, model.parameters(), past, how, generator, on_epoch=told)
        return {MODEL: model.state_dict()}

    if not conf.runtime.reuse:
        train()
        return
    facts = (asdict(conf.data), conf.seed, asdict(conf.model), asdict(conf.pretrain))
    threads = conf.runtime.server_threads
    key = content_key(code_digest(), version("torch"), threads, *facts)
    model.load_state_dict(kept_models(f"recommender-{key}", train)[MODEL])


def device_scores(logits: Logits, scoring: Samples, top_k: int) -> dict[str, Tensor]:
    """Return what goes up of a model on a device: how well it ranks, and by how many samples."""
    found = user_scores(predict(logits, scoring), scoring["label"], top_k)
    return {SCORES: torch.tensor([*asdict(found).values()], dtype=torch.float64)}


class Ranked:
    """The server's half of what devices score themselves: all but the state and the rounds."""

    grouped_by = "activity decile"

    def __init__(self, experiment: InteractionExperiment, on_progress: OnProgress) -> None:
        self.experiment = experiment
        self.model = experiment.recommender()
        self._on_progress = on_progress
        self._is_prepared = False
        self._found: dict[int, UserScores] = {}

    def prepare(self) -> None:
        """Train the cloud's model; only once."""
        if not self._is_prepared:
            pretrain(self.model, self.experiment, self._on_progress)
            self._is_prepared = True

    def plan(self, num_rounds: int) -> None:
        """Do nothing: every round is alike."""

    def workload(self) -> Workload:
        """Return what a turn takes a device. Raises ConfError for tiers of another width."""
        refuse_widths(self.experiment.conf)
        return lambda share: self.load()

    def load(self) -> Load:
        """Return what a turn takes a device with as many samples as devices have in the mean."""
        raise NotImplementedError

    def take(self, answers: Iterable[Answer]) -> None:
        """Keep what devices scored in this round, in place of the last one's."""
        self._found = {each.device: _scores_from(each.beside[SCORES]) for each in answers}

    def prepared(self) -> dict[str, State]:
        """Return the cloud's first model."""
        return {MODEL: self.model.state_dict()}

    def adopt(self, prepared: Mapping[str, State]) -> None:
        """Take over the cloud's first model."""
        self.model.load_state_dict(prepared[MODEL])
        self._is_prepared = True

    def memory(self) -> dict[str, State]:
        """Return what devices scored in the last round: devices (N,) and numbers (N, 5)."""
        numbers = [list(asdict(user).values()) for user in self._found.values()]
        scores = torch.tensor(numbers, dtype=torch.float64).reshape(len(numbers), 5)
        return {SCORES: {DEVICES: torch.tensor(list(self._found)), SCORES: scores}}

    def remember(self, memory: Mapping[str, State]) -> None:
        """Take over what devices scored."""
        devices, scores = memory[SCORES][DEVICES].tolist(), memory[SCORES][SCORES]
        self._found = {d: _scores_from(each) for d, each in zip(devices, scores, strict=True)}

    def scores(self, state: State) -> Iterator[tuple[str, float]]:
        """Yield GAUC, HitRate, NDCG and MRR over the last round's devices; before it, nothing."""
        if not self._found:
            return
        found = self._found.values()
        counts = torch.tensor([user.count for user in found])
        yield "gauc", gauc(torch.tensor([user.auc for user in found]), counts)
        for name in MEANS:
            yield name, torch.tensor([getattr(user, name) for user in found]).nanmean().item()

    def by_device(self) -> Mapping[int, DeviceScore]:
        """Return each device's AUC, weighed by the samples that score it."""
        deciles = self.experiment.deciles
        return {
            device: DeviceScore(user.auc, user.count, int(deciles[device]))
            for device, user in self._found.items()
        }

    def references(self) -> Mapping[str, Mapping[str, float]]:
        """Return none: what scores are held against are runs of their own."""
        return {}


def _scores_from(numbers: Tensor) -> UserScores:
    auc, hit, ndcg, mrr, count = numbers.tolist()
    return UserScores(auc, hit, ndcg, mrr, int(count))
