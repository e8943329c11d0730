"""CoDA's server half, and how both halves are made from a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from dccl_flower.codecs import State
from dccl_flower.config import ConfError
from dccl_flower.data.samples import Samples, taken
from dccl_flower.device_store import Parcel
from dccl_flower.fleet.tiers import Load, Workload
from dccl_flower.interaction_experiment import recipe
from dccl_flower.learning.matching import KeyWeights, Pool, match_keys, rows_of_some_users
from dccl_flower.method import Answer, Ask, Kinds, MethodKind, Numbers, OnProgress, Round, true_ones
from dccl_flower.seeds import torch_generator
from dccl_flower.strategies.coda.conf import CodaConf, conf_of
from dccl_flower.strategies.coda.device import CodaDevice, Learn, Score, Tell
from dccl_flower.strategies.coda.load import served, turn_load
from dccl_flower.strategies.coda.shared import (
    HISTORY,
    ITEM,
    KEPT,
    MATCHED,
    MODEL,
    CodaExperiment,
    packed,
    read_keys,
)
from dccl_flower.strategies.ranked import RANKS, SCORES, Ranked


class Coda(Ranked):
    """The server's half: it trains once, and then finds each device samples like its own."""

    def __init__(self, experiment: CodaExperiment, on_progress: OnProgress) -> None:
        super().__init__(experiment, on_progress)
        self.conf = conf_of(experiment)
        self._known = experiment.known()
        self._shares: dict[str, float] = {}

    def initial_state(self) -> State:
        """Return nothing: no state goes round."""
        return {}

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Ask for keys, answer them with samples of others, and have devices train and score."""
        keep = {MODEL: Parcel.of(self.model.state_dict())}
        if self.conf.method.serves == "cloud":
            turn = Score(self.conf.top_k)
            ask = Ask({}, turn, keep=keep, like={}, wants=RANKS, brings=SCORES)
            answers = yield dict.fromkeys(devices, ask)
            self.take(answers.values())
            return state
        found: dict[int, Tensor] = {}
        if self.conf.matching.by != "nothing":
            wants = {ITEM: Numbers(), HISTORY: Numbers()}
            tell = Ask({}, Tell(), like={}, wants=wants, brings="keys")
            told = yield dict.fromkeys(devices, tell)
            found = {device: self._match(number, each) for device, each in told.items()}
            devices = list(found)
        answers = yield {d: self._learn(keep, found.get(d)) for d in devices}
        self.take(answers.values())
        if self.conf.method.report_kept:
            self._measure(found, answers)
        return state

    def scores(self, state: State) -> Iterator[tuple[str, float]]:
        """Yield how devices rank, and where it is measured what they were offered and kept."""
        yield from super().scores(state)
        yield from self._shares.items()

    def load(self) -> Load:
        """Return what a turn takes a device with as many samples as devices have in the mean."""
        return turn_load(self.experiment, self.model, len(self._drawn))

    def memory(self) -> dict[str, State]:
        """Return what devices scored, and shares where they are measured."""
        shares = {n: torch.tensor(v, dtype=torch.float64) for n, v in self._shares.items()}
        return {**super().memory(), "shares": shares}

    def remember(self, memory: Mapping[str, State]) -> None:
        """Take over both."""
        super().remember(memory)
        self._shares = {name: share.item() for name, share in memory["shares"].items()}

    def state_dict(self, state: State) -> dict[str, State]:
        """Return the cloud's model; devices' own stay with them."""
        return {MODEL: self.model.state_dict()}

    @cached_property
    def pool(self) -> Pool:
        """The samples that the cloud searches, with the keys that its model gives them."""
        samples = self.experiment.samples(self._known[self._drawn])
        return Pool(samples, match_keys(self.model, samples, self._key_weights))

    @cached_property
    def _drawn(self) -> Tensor:
        """Which of the known rows are in the pool. Raises ConfError where no user fits."""
        users = torch.from_numpy(self.experiment.log.users[self._known])
        generator = torch_generator(self.conf.seed, "pool")
        try:
            return rows_of_some_users(users, self.conf.matching.most, generator)
        except ValueError as error:
            raise ConfError(f"matching.{error}") from error

    @property
    def _key_weights(self) -> KeyWeights:
        own = self.conf.matching
        return KeyWeights(own.item_weight, own.features_weight, own.history_weight)

    def _match(self, number: int, told: Answer) -> Tensor:
        """Return the places in the pool of what a device is offered, all of other users."""
        log, own = self.experiment.log, self.conf.matching
        keys = read_keys(told.beside, self.conf.data.history, log.num_items, told.device)
        user, most = int(self.experiment.users[told.device]), own.each * len(keys[ITEM])
        if own.by == "samples":
            return self.pool.nearest(self._keys(keys), own.each, user)
        if own.by == "users":
            liked = keys[HISTORY].unique()
            return self.pool.of_similar_users(liked[liked >= 0], most, user)
        generator = torch_generator(self.conf.seed, "match", told.device, "round", number)
        return self.pool.random(most, user, generator)

    def _keys(self, told: Samples) -> Tensor:
        return match_keys(self.model, told, self._key_weights)

    def _learn(self, keep: Mapping[str, Parcel], found: Tensor | None) -> Ask:
        conf = self.conf
        num_found = 0 if found is None else len(found)
        tells_kept = conf.method.report_kept and num_found > 0
        turn = Learn(recipe(conf.device), conf.sieve.sieve(), conf.top_k, tells_kept)
        offered = {} if found is None else {MATCHED: packed(taken(self.pool.samples, found))}
        wants = RANKS | ({KEPT: Numbers(num_found)} if tells_kept else {})
        return Ask({}, turn, beside=offered, keep=keep, like={}, wants=wants, brings=SCORES)

    def _measure(self, found: Mapping[int, Tensor], answers: Mapping[int, Answer]) -> None:
        """Keep what share of the samples is of users with the device's own taste."""
        clusters = self.experiment.log.clusters
        assert clusters is not None
        of_pool = torch.from_numpy(clusters[self.pool.samples["user"].numpy()])
        told = {d: each.beside[KEPT] for d, each in answers.items() if KEPT in each.beside}
        own_taste = clusters[self.experiment.users]
        likes = [of_pool[found[device]] == int(own_taste[device]) for device in told]
        if not told:
            return
        is_own, weights = torch.cat(likes).double(), torch.cat(list(told.values())).double()
        self._shares = {
            "matched_own_taste": is_own.mean().item(),
            "kept_own_taste": ((weights * is_own).sum() / weights.sum()).item(),
            "kept": (weights > 0).double().mean().item(),
        }


def check(experiment: CodaExperiment) -> Workload:
    """Return what a turn takes a device. Raises ConfError for what does not go together."""
    server = Coda(experiment, lambda *_: None)
    assert len(server._drawn)
    return server.workload()


def kinds(experiment: CodaExperiment) -> Kinds:
    """Return what passes: where samples are matched, keys go up and others' samples down."""
    conf = conf_of(experiment)
    matches = conf.method.serves == "device" and conf.matching.by != "nothing"
    told = {SCORES} | ({ITEM, HISTORY} if matches else set())
    if conf.method.report_kept:
        told |= {KEPT}
    down = {MODEL} | ({MATCHED} if matches else set())
    return Kinds(down, true_ones(scores=True, keys=matches), told)


CODA = MethodKind(CodaConf, CodaExperiment.open, Coda, CodaDevice, check, served, kinds)
