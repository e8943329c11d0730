"""From the copies that a round leaves to the next co-submodel."""

from __future__ import annotations

from collections.abc import Sequence

from dccl_flower.config import TwoSidedRoundsConf
from dccl_flower.learning.batch_statistics import (
    OtherSide,
    is_statistic,
    pooled_statistics,
    step_statistics,
)
from dccl_flower.learning.controlled import LocalRecipe
from dccl_flower.learning.drift import ControlVariates
from dccl_flower.learning.fusion import Copy, Fusion, State
from dccl_flower.learning.server_momentum import ServerMomentum


class ServerUpdate:
    """A fusion rule and what the server remembers from round to round."""

    def __init__(self, rounds: TwoSidedRoundsConf, fusion: Fusion) -> None:
        self._rounds = rounds
        self._fusion = fusion
        self._momentum = ServerMomentum(rounds.server_momentum)
        self._variates = ControlVariates(rounds.cloud_weight)
        self._seen_by: dict[str, State] = {"cloud": {}, "devices": {}}

    def corrections(self) -> tuple[State, State]:
        """Return what cloud and devices add to their gradients; nothing where none is asked for."""
        return self._variates.corrections()

    def other_sides(self) -> tuple[OtherSide, OtherSide]:
        """Return what cloud and devices are told of each other's batch statistics."""
        weight = self._rounds.cloud_weight
        return (
            OtherSide(self._seen_by["devices"], weight),
            OtherSide(self._seen_by["cloud"], 1 - weight),
        )

    def next_state(
        self, before: State, cloud: Copy | None, devices: Sequence[Copy], recipe: LocalRecipe
    ) -> State:
        """Fuse the copies that both sides made of ``before`` under ``recipe``."""
        rounds = self._rounds
        if cloud is not None and recipe.statistics == "mixed":
            total = sum(copy.count for copy in devices)
            shares = [copy.count / total for copy in devices]
            self._seen_by = {
                "cloud": {n: t for n, t in cloud.state.items() if is_statistic(n)},
                "devices": {
                    name: tensor.to(before[name].dtype)
                    for name, tensor in pooled_statistics(
                        [copy.state for copy in devices], shares
                    ).items()
                },
            }
        fused = self._fusion(cloud, devices, rounds.cloud_weight)
        fused = {name: tensor.to(before[name].dtype) for name, tensor in fused.items()}
        fused = step_statistics(before, fused, rounds.statistics_step)
        if rounds.scaffold and cloud is not None:
            self._variates.update(before, cloud.state, devices, recipe, rounds.keep_momentum)
        return self._momentum.step(before, fused)
