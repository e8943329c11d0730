"""One configuration with its log of users and items: which devices there are, and what each has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, cast

import numpy as np
import torch

from dccl_flower.config import Conf, ConfError
from dccl_flower.data.interactions import PAST, RECENT, TEST, Interactions
from dccl_flower.data.log import open_interactions
from dccl_flower.data.samples import Samples, samples_of
from dccl_flower.experiment import Experiment
from dccl_flower.learning.recommend import FitRecipe
from dccl_flower.models.recommender import Catalogue, Recommender, build_recommender
from dccl_flower.recommendation_config import FitConf, InteractionConf
from dccl_flower.seeds import isolated_rng, numpy_generator

UNUSED = TEST + 1  # a part that nobody looks at


@dataclass(frozen=True)
class UserSamples:
    """A device's samples: those it may train on, and those that only score."""

    own: Samples
    scoring: Samples


@dataclass(frozen=True)
class InteractionExperiment(Experiment):
    """One configuration with its log; a device is one user of it, by a number of its own."""

    conf: InteractionConf
    log: Interactions

    @classmethod
    def open(cls, conf: Conf) -> Self:
        """Read or draw the log of a configuration, or find it done.

        Raises ConfError where the log is impossible, or has fewer users to score than devices.
        """
        given = cast(InteractionConf, conf)
        log = open_interactions(given.data, given.seed)
        if given.scoring == "validation":
            log = scored_by_recent(log)
        experiment = cls(given, log)
        if len(experiment.users) < given.devices.count:
            there = f"{len(experiment.users)} users have recent samples and samples to score"
            raise ConfError(f"devices.count={given.devices.count}: only {there}")
        return experiment

    def on_unseen(self) -> Self:
        """Return the experiment that scores by the later half of what devices hold."""
        return self.open(replace(self.conf, scoring="validation"))

    @cached_property
    def users(self) -> np.ndarray:
        """The user of each device, drawn of those with recent samples and samples to score."""
        has = [
            np.bincount(self.log.users[self.log.rows_in(p)], minlength=self.log.num_users) > 0
            for p in (RECENT, TEST)
        ]
        able = np.flatnonzero(has[0] & has[1])
        count = min(self.conf.devices.count, len(able))
        return numpy_generator(self.conf.seed, "users").permutation(able)[:count]

    @cached_property
    def deciles(self) -> np.ndarray:
        """The decile of activity of each device, 1 for the least active."""
        return self.log.activity_deciles(self.users)

    @cached_property
    def catalogue(self) -> Catalogue:
        """What models must know of users and items."""
        log = self.log
        features = torch.from_numpy(np.array(log.features, dtype=np.int64))
        return Catalogue(log.num_users, log.profile_sizes, log.feature_sizes, features)

    def recommender(self) -> Recommender:
        """Build the model, with the weights that the seed draws."""
        conf = self.conf.model
        with isolated_rng(self.conf.seed, "init", "recommender"):
            return build_recommender(
                conf.name,
                self.catalogue,
                embedding=conf.embedding,
                hidden=tuple(conf.hidden),
                user_ids=conf.user_ids,
            )

    def samples(self, rows: np.ndarray) -> Samples:
        """Return rows of the log as samples."""
        return samples_of(self.log, rows, self.conf.data.history)

    def past(self) -> Samples:
        """Return what the cloud first trains on: all users' past samples."""
        return self.samples(self.log.rows_in(PAST))

    @property
    def example(self) -> Samples:
        """One sample, to measure models by."""
        return self.samples(self.log.rows_in(RECENT)[:1])

    def rows_a_device(self, *parts: int) -> float:
        """Return how many rows of some parts of the log a device has, in the mean."""
        rows = np.isin(self.log.parts, parts)
        counts = np.bincount(self.log.users[rows], minlength=self.log.num_users)
        return float(counts[self.users].mean())

    def device_loader(self, device: int) -> UserSamples:
        """Return a device's recent samples, and those that score it."""
        user = int(self.users[device])
        own, scoring = (self.samples(self.log.rows_of(user, part)) for part in (RECENT, TEST))
        return UserSamples(own, scoring)


def recipe(conf: FitConf) -> FitRecipe:
    """Return how a configuration says that a model is fitted."""
    return FitRecipe(conf.epochs, conf.batch_size, conf.lr, conf.weight_decay)


def scored_by_recent(log: Interactions) -> Interactions:
    """Return a log whose users are scored by the later half of their recent rows.

    What scored before is left out. Rows at one moment stay together.
    """
    parts = np.where(log.parts == TEST, UNUSED, log.parts)
    recent = log.rows_in(RECENT)
    firsts = np.searchsorted(log.users[recent], log.users[recent], "left")
    lasts = np.searchsorted(log.users[recent], log.users[recent], "right")
    middle = recent[(firsts + lasts) // 2]  # each user's, given once a row
    parts[recent[log.times[recent] >= log.times[middle]]] = TEST
    return replace(log, parts=parts)
