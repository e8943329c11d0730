"""Drift correction between the two sides by control variates, all kept by the server.

After SCAFFOLD, Karimireddy et al., arXiv 1910.06378, option II. Its clients are here the two
sides, cloud and devices: what sets them apart is their classes, and a device need keep nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dccl_flower.learning.batch_statistics import is_statistic
from dccl_flower.learning.controlled import LocalRecipe
from dccl_flower.learning.fusion import Copy, State, average


class ControlVariates:
    """Estimate each side's mean gradient of the last round, and correct both to their mean."""

    def __init__(self, cloud_weight: float) -> None:
        self._cloud_weight = cloud_weight
        self._cloud: State = {}
        self._devices: State = {}

    def corrections(self) -> tuple[State, State]:
        """Return what cloud and devices add to each of their gradients; nothing at first."""
        apart = {name: self._devices[name] - self._cloud[name] for name in self._cloud}
        return (
            {name: (1 - self._cloud_weight) * tensor for name, tensor in apart.items()},
            {name: -self._cloud_weight * tensor for name, tensor in apart.items()},
        )

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
        self._cloud = _mean_gradient(start, cloud, for_cloud, reach)
        self._devices = _mean_gradient(start, average(None, devices, 0), for_devices, reach)


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
