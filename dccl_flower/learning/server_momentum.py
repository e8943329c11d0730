"""Momentum on the server over what the rounds change (FedAvgM)."""

from __future__ import annotations

from dccl_flower.learning.batch_statistics import is_statistic
from dccl_flower.learning.fusion import State


class ServerMomentum:
    """Go on in the direction of earlier rounds; batch statistics are taken as they are.

    Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", arXiv 1909.06335, with a server rate of one.
    """

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._velocity: State = {}

    def step(self, before: State, fused: State) -> State:
        """Return the next state from the round's first one and its fused one."""
        if self._momentum == 0:
            return fused  # to the last bit
        after = dict(fused)
        for name in (name for name in fused if not is_statistic(name)):
            change = fused[name] - before[name]
            if name in self._velocity:
                change = change + self._momentum * self._velocity[name]
            self._velocity[name] = change
            after[name] = before[name] + change
        return after
