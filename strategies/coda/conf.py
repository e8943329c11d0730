"""CoDA's part of the configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from dccl_flower.config import BareRoundsConf, ConfError, MethodConf
from dccl_flower.interaction_experiment import InteractionExperiment
from dccl_flower.recommendation_config import InteractionConf
from dccl_flower.strategies.coda.sieve import Sieve
from dccl_flower.typed_yaml import bound, section


@dataclass
class CodaMethodConf(MethodConf):
    """Which model devices score: their own, or the cloud's as it is.

    With ``report_kept`` devices tell which samples they keep, to measure what a made-up world
    knows: whether these are of users with the same taste. It is no part of the method.
    """

    serves: Literal["device", "cloud"] = "device"
    report_kept: bool = False


@dataclass
class MatchingConf:
    """What the cloud offers a device: up to ``each`` samples for every one of its own.

    By ``samples`` those closest in item, the item's features and history, each counting as much as
    its weight says; by ``users`` those of users who like the same items. The pool is of whole users
    drawn at random, with ``most`` samples in all.
    """

    by: Literal["samples", "users", "random", "nothing"] = "samples"
    each: int = bound(10, at_least=1)
    most: int = bound(200_000, at_least=1)
    item_weight: float = bound(1.0, at_least=0)
    features_weight: float = bound(1.0, at_least=0)
    history_weight: float = bound(1.0, at_least=0)


@dataclass
class SieveConf:
    """What a device keeps of the samples that it is offered.

    By the classifier's probability: ``hard`` keeps those of ``threshold`` or more, ``soft`` weighs
    them by their odds, ``cap`` at most. ``users``, of MPDA, keeps each user whose samples make the
    model rank the own ones better. The classifier ``sees`` what is liked and what is not, or what
    the model makes of a sample, ``with_label`` and ``with_profile`` or without. It is fitted in
    ``folds``, by a penalty that is the weaker the larger ``strength`` is.
    """

    keeps: Literal["hard", "soft", "users", "all"] = "hard"
    threshold: float = bound(0.6, above=0, at_most=1)
    cap: float = bound(10.0, above=0)
    folds: int = bound(5, at_least=2)
    strength: float = bound(0.01, above=0)
    sees: Literal["taste", "representation"] = "taste"
    with_label: bool = True
    with_profile: bool = False

    def sieve(self) -> Sieve:
        """Return how a device sifts."""
        return Sieve(**asdict(self))


@dataclass
class CodaRoundsConf(BareRoundsConf):
    """Rounds in which devices train their models from the cloud's, one as a rule."""

    count: int = bound(1, at_least=1)


@dataclass
class CodaConf(InteractionConf):
    """One experiment with CoDA."""

    method: CodaMethodConf = section(CodaMethodConf)
    rounds: CodaRoundsConf = section(CodaRoundsConf)
    matching: MatchingConf = section(MatchingConf)
    sieve: SieveConf = section(SieveConf)

    def check(self) -> None:
        """Raise ConfError for values that do not go with one another."""
        super().check()
        own, method = self.matching, self.method
        if not own.item_weight + own.features_weight + own.history_weight > 0:
            raise ConfError("matching.history_weight=0: must be above 0 where the others are 0")
        if self.sieve.keeps == "users" and own.by != "users":
            raise ConfError(f"matching.by={own.by}: must be users with sieve.keeps=users")
        if self.model.user_ids:
            told = "not with method.name=coda, which does not tell whose samples are"
            raise ConfError(f"model.user_ids=true: {told}")
        if method.report_kept and self.data.name != "world":
            told = f"not with data.name={self.data.name}, which tells no user's taste"
            raise ConfError(f"method.report_kept=true: {told}")
        if method.report_kept and (method.serves == "cloud" or own.by == "nothing"):
            raise ConfError("method.report_kept=true: needs devices that are offered samples")


def conf_of(experiment: InteractionExperiment) -> CodaConf:
    """Return the configuration with the sections of CoDA."""
    assert isinstance(experiment.conf, CodaConf)
    return experiment.conf
