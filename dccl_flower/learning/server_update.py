"""From the copies that a round leaves to the next co-submodel: fusion, momentum, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from dccl_flower.image_config import TwoSidedRoundsConf
from dccl_flower.learning.batch_statistics import (
    OtherSide,
    is_statistic,
    pooled_statistics,
    step_statistics,
)
from dccl_flower.learning.controlled import LocalRecipe
from dccl_flower.learning.fusion import Copy, Fusion, FusionRule, State, average


class ServerUpdate:
    """A fusion rule and what the server remembers from round to round."""

    def __init__(self, rounds: TwoSidedRoundsConf, fusion: FusionRule, head: str) -> None:
        self.fusion = replace(fusion, head=head) if isinstance(fusion, Fusion) else fusion
        self._rounds = rounds
        self._momentum = ServerMomentum(rounds.server_momentum)
        self._variates = ControlVariates(rounds.cloud_weight)
        self._seen: tuple[State, State] = ({}, {})

    def corrections(self) -> tuple[State, State]:
        """Return what cloud and devices add to their gradients; nothing where none is asked for."""
        return self._variates.corrections()

    def other_sides(self) -> tuple[OtherSide, OtherSide]:
        """Return what cloud and devices are told of each other's batch statistics."""
        (by_cloud, by_devices), weight = self._seen, self._rounds.cloud_weight
        return OtherSide(by_devices, weight), OtherSide(by_cloud, 1 - weight)

    def memory(self) -> dict[str, State]:
        """Return what is remembered, by what it is."""
        of_cloud, of_devices = self._seen
        return {
            "velocity": self._momentum.velocity,
            "apart": self._variates.apart,
            "statistics_cloud": of_cloud,
            "statistics_devices": of_devices,
        }

    def remember(self, memory: Mapping[str, State]) -> None:
        """Take over what another one remembered."""
        self._momentum.velocity = dict(memory["velocity"])
        self._variates.apart = memory["apart"]
        self._seen = memory["statistics_cloud"], memory["statistics_devices"]

    def next_state(
        self, before: State, cloud: Copy | None, devices: Sequence[Copy], recipe: LocalRecipe
    ) -> State:
        """Fuse the copies that both sides made of ``before`` under ``recipe``."""
        rounds = self._rounds
        if cloud is not None and recipe.statistics == "mixed":
            total = sum(copy.count for copy in devices)
            shares = [copy.count / total for copy in devices]
            pooled = pooled_statistics([copy.state for copy in devices], shares)
            self._seen = (
                {name: tensor for name, tensor in cloud.state.items() if is_statistic(name)},
                {name: tensor.to(before[name].dtype) for name, tensor in pooled.items()},
            )
        fused = self.fusion(cloud, devices, rounds.cloud_weight)
        fused = {name: tensor.to(before[name].dtype) for name, tensor in fused.items()}
        fused = step_statistics(before, fused, rounds.statistics_step)
        if rounds.scaffold and cloud is not None:
            self._variates.update(before, cloud.state, devices, recipe, rounds.keep_momentum)
        return self._momentum.step(before, fused)


class ServerMomentum:
    """Go on in the direction of earlier rounds (FedAvgM); batch statistics are taken as they are.

    Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", arXiv 1909.06335, with a server rate of one.
    """

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self.velocity: State = {}

    def step(self, before: State, fused: State) -> State:
        """Return the next state from the round's first one and its fused one."""
        if self._momentum == 0:
            return fused  # to the last bit
        after = dict(fused)
        for name in (name for name in fused if not is_statistic(name)):
            change = fused[name] - before[name]
            if name in self.velocity:
                change = change + self._momentum * self.velocity[name]
            self.velocity[name] = change
            after[name] = before[name] + change
        return after


class ControlVariates:
    """Estimate each side's mean gradient of the last round, and correct both to their mean.

    After SCAFFOLD, Karimireddy et al., arXiv 1910.06378, option II. Its clients are here the two
    sides, cloud and devices: what sets them apart is their classes, and a device need keep nothing.
    """

    def __init__(self, cloud_weight: float) -> None:
        self._cloud_weight = cloud_weight
        self.apart: State = {}

    def corrections(self) -> tuple[State, State]:
        """Return what cloud and devices add to each of their gradients; nothing at first."""
        shares = (1 - self._cloud_weight, -self._cloud_weight)
        cloud, devices = ({n: share * t for n, t in self.apart.items()} for share in shares)
        return cloud, devices

    def update(
        self,
        start: State,
        cloud: State,
        devices: Sequence[Copy],
        recipe: LocalRecipe,
        keep_momentum: bool = False,
    ) -> None:
        """Learn from a round: where both sides began and where they ended."""
        for_cloud, for_devices = self.corrections()
        steps = steps_with_momentum(recipe.steps, recipe.momentum)
        if keep_momentum and recipe.momentum < 1:
            steps = recipe.steps / (1 - recipe.momentum)  # the buffer was full from the start
        reach = recipe.lr * steps
        of_cloud = _mean_gradient(start, cloud, for_cloud, reach)
        of_devices = _mean_gradient(start, average(None, devices, 0), for_devices, reach)
        self.apart = {name: of_devices[name] - of_cloud[name] for name in of_cloud}


def steps_with_momentum(steps: int, momentum: float) -> float:
    """Return how many plain steps a constant gradient goes in ``steps`` with heavy-ball momentum.

    The k-th step moves by 1 + m + ... + m^(k-1), from an empty buffer.
    """
    return sum(sum(momentum**j for j in range(k)) for k in range(1, steps + 1))


def _mean_gradient(start: State, end: State, correction: State, reach: float) -> State:
    return {
        name: (start[name] - end[name].to(start[name].dtype)) / reach
        - correction.get(name, torch.zeros(()))
        for name in start
        if not is_statistic(name)
    }
