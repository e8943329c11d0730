"""Flower's differential privacy around the rounds of a method, as a configuration asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from dccl_flower.codecs import Codec
from dccl_flower.config import OnFailure, PrivacyConf
from dccl_flower.fleet.profiles import Fleet, co_shares
from dccl_flower.seeds import derive_seed

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]
NOT_COVERED = "not with differential privacy, which does not cover it"
TOLD = ("device", "server-round", "peak-rss-mb")  # what a device still tells beside its update
FIXED = {
    "client_fixed": DifferentialPrivacyClientSideFixedClipping,
    "server_fixed": DifferentialPrivacyServerSideFixedClipping,
}
ADAPTIVE = {
    "client_adaptive": DifferentialPrivacyClientSideAdaptiveClipping,
    "server_adaptive": DifferentialPrivacyServerSideAdaptiveClipping,
}


def uncovered(
    codec: Codec, devices_per_node: int, fleet: Fleet | None, on_failure: OnFailure
) -> list[str]:
    """Return what of a run differential privacy does not cover, by how it is sent."""
    refused = {
        f"codec={codec.name}": not codec.is_exact,
        f"devices_per_node={devices_per_node}": devices_per_node != 1,
        f"on_failure={on_failure}": on_failure == "ask_again",  # the wrapper sees the first alone
        "tiers with co_share below 1": co_shares(fleet) != {1.0},
    }
    return [what for what, is_given in refused.items() if is_given]


def privately(strategy: Strategy, conf: PrivacyConf, cohort: int, seed: int) -> Strategy:
    """Return a strategy whose state of record is private where a configuration says so.

    ``cohort`` devices are asked in a round. The noise is that of ``seed``.
    """
    wrapped: Strategy
    if conf.dp in FIXED:
        settings = (conf.noise_multiplier, conf.clipping_norm, cohort)
        wrapped = FIXED[conf.dp](strategy, *settings)
    elif conf.dp in ADAPTIVE:
        wrapped = ADAPTIVE[conf.dp](strategy, conf.noise_multiplier, cohort, conf.clipping_norm)
    else:
        return strategy
    return Repeatable(wrapped, seed)


def private_mods(conf: PrivacyConf) -> list[Mod]:
    """Return what a device's answers pass on their way up, the last one first."""
    mods: dict[str, Mod] = {
        "client_fixed": fixedclipping_mod,
        "client_adaptive": adaptiveclipping_mod,
        "local": _repeatable(local_mod(conf)),
    }
    own = [mods[conf.dp]] if conf.dp in mods else []
    return [] if conf.dp == "none" else [*own, tell_little]


def local_mod(conf: PrivacyConf) -> LocalDpMod:
    """Return the mod that clips an update and adds noise to it on the device."""
    return LocalDpMod(conf.clipping_norm, sensitivity_of(conf), conf.epsilon, conf.delta)


def sensitivity_of(conf: PrivacyConf) -> float:
    """Return how far apart two devices' clipped updates count as, by default as far as can be."""
    return conf.sensitivity or 2 * conf.clipping_norm


def tell_little(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Let an answer count as any other, and take away what it says of the device's samples."""
    reply = call_next(message, context)
    if reply.has_content():
        for name, record in list(reply.content.metric_records.items()):
            told: dict[str, Any] = {key: record[key] for key in TOLD if key in record}
            reply.content[name] = MetricRecord({"num-examples": 1, **told})
    return reply


class Repeatable(Strategy):
    """A wrapper for differential privacy whose noise is that of a seed.

    Answers that failed do not reach it, since it would leave out their whole round without a word;
    the strategy inside, ``wrapped.strategy``, judges them as always.
    """

    def __init__(self, wrapped: Any, seed: int) -> None:
        self.wrapped = wrapped
        self._seed = seed

    def summary(self) -> None:
        """Log what the wrapper and the strategy inside will do."""
        self.wrapped.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the cohort."""
        messages: Iterable[Message] = self.wrapped.configure_train(
            server_round, arrays, config, grid
        )
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next state of record with its noise."""
        come = list(replies)
        self.wrapped.strategy.failed = [reply for reply in come if reply.has_error()]
        good = [reply for reply in come if reply.has_content()]
        number = self.wrapped.strategy.done + server_round
        with _numpy_seeded(self._seed, "privacy", "round", number):
            aggregated: tuple[ArrayRecord | None, MetricRecord | None] = (
                self.wrapped.aggregate_train(server_round, good)
            )
        return aggregated

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody, or those whom the strategy inside asks."""
        messages: Iterable[Message] = self.wrapped.configure_evaluate(
            server_round, arrays, config, grid
        )
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the scores as the strategy inside averages them."""
        scores: MetricRecord | None = self.wrapped.aggregate_evaluate(server_round, replies)
        return scores


def _repeatable(mod: Mod) -> Mod:
    """Return a mod whose noise is that of the message's seed, device and round."""

    def seeded(
        message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        (config,) = message.content.config_records.values()
        seed, device, number = (config[key] for key in ("seed", "device", "server-round"))
        with _numpy_seeded(seed, "privacy", "device", device, "round", number):  # type: ignore
            return mod(message, context, call_next)

    return seeded


@contextmanager
def _numpy_seeded(seed: int, *keys: str | int) -> Iterator[None]:
    """Seed NumPy's global generator inside the block: Flower's noise knows no other."""
    before = np.random.get_state()
    np.random.seed(derive_seed(seed, *keys) % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


def noise_of_rounds(
    conf: PrivacyConf, cohort: int, answered: Sequence[int], share: float
) -> list[float]:
    """Return each round's noise over what one device can change of the state of record.

    ``answered`` devices of a round count alike, and their mean has a ``share`` in the state.
    """
    if conf.dp == "local":
        sigma = sensitivity_of(conf) * np.sqrt(2 * np.log(1.25 / conf.delta)) / conf.epsilon
        return [float(sigma / (2 * conf.clipping_norm)) for count in answered if count]
    counting = cohort / 20  # of how many were clipped, where that is told: Flower's default
    own = conf.noise_multiplier
    if conf.dp in ADAPTIVE and own:
        own = (own**-2 - (2 * counting) ** -2) ** -0.5
    noises = [own * count / (cohort * share) for count in answered if count]
    if conf.dp in ADAPTIVE and own:
        noises = [(noise**-2 + (2 * counting) ** -2) ** -0.5 for noise in noises]
    return noises


def epsilon_of(noises: Sequence[float], delta: float) -> float | None:
    """Return the epsilon of so many releases of Gaussian noise; None where one has none.

    By Rényi accounting, with no credit for who was not asked in a round. Two sets of devices are
    neighbours where one has a device more, or, with ``local`` noise, another device's samples.
    Mironov, "Rényi Differential Privacy", arXiv 1702.07476.
    """
    from dp_accounting import GaussianDpEvent
    from dp_accounting.rdp import RdpAccountant

    if not all(noises):
        return None
    accountant = RdpAccountant()
    for noise in noises:
        accountant.compose(GaussianDpEvent(noise))
    return float(accountant.get_epsilon(delta))
