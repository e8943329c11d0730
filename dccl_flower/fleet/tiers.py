"""What a turn takes devices of each tier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dccl_flower.codecs import Codec, encoded_bytes
from dccl_flower.config import ConfError
from dccl_flower.fleet.clock import Work
from dccl_flower.fleet.profiles import Fleet, co_shares
from dccl_flower.image_config import RoundsConf
from dccl_flower.learning.cost import Cost, model_cost, training_memory, turn_flops
from dccl_flower.learning.widths import Widths
from dccl_flower.models.frozen import exchanged_state


@dataclass(frozen=True)
class Workload:
    """A turn of a method: what trains in every width, what only scores beside it, and how much.

    A step takes ``batch_factor`` times a batch of ``rounds``; ``example`` holds images
    (N, C, H, W); ``keep_bytes`` are what a device downloads before its first turn. Every turn is
    taken to include the pass of ``control``.
    """

    rounds: RoundsConf
    widths: Widths
    example: Tensor
    control: nn.Module | None = None
    batch_factor: int = 1
    keep_bytes: int = 0


@dataclass(frozen=True)
class TurnCost:
    """What a turn takes a device; before its ``first`` one it downloads what it keeps.

    ``memory`` is in bytes.
    """

    first: Work
    later: Work
    memory: int


def turn_costs(fleet: Fleet, workload: Workload, codec: Codec) -> dict[float, TurnCost]:
    """Return what a turn takes the devices of each share of the width."""
    control = Cost() if workload.control is None else model_cost(workload.control, workload.example)
    rounds, costs = workload.rounds, {}
    batch_size = workload.batch_factor * rounds.device_batch_size
    for share in co_shares(fleet):
        module = workload.widths.modules[share]
        cost = model_cost(module, workload.example)
        moved = encoded_bytes(codec.encode(exchanged_state(module)))
        flops = turn_flops(cost, control, rounds.local_steps * batch_size)
        memory = training_memory(cost, control, batch_size, rounds.momentum > 0)
        first = Work(moved + workload.keep_bytes, flops, moved)
        costs[share] = TurnCost(first, Work(moved, flops, moved), memory)
    return costs


def fitting_tiers(fleet: Fleet, costs: Mapping[float, TurnCost]) -> set[str]:
    """Return the names of the tiers that have the memory. Raises ConfError where none has."""
    fitting = {t.name for t in fleet.tiers if costs[t.co_share].memory <= 1e6 * t.memory_mb}
    if not fitting:
        least = min(cost.memory for cost in costs.values()) / 1e6
        most = max(tier.memory_mb for tier in fleet.tiers)
        raise ConfError(
            f"devices.profiles: no tier fits, the largest has {most:g} MB and training takes at "
            f"least {least:.1f} MB"
        )
    return fitting
