"""What a turn takes devices of each tier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dccl_flower.codecs import Codec, State
from dccl_flower.config import ConfError
from dccl_flower.fleet.clock import Work
from dccl_flower.fleet.profiles import Fleet, co_shares


@dataclass(frozen=True)
class Piece:
    """A piece of a turn: what crosses, what is computed, or both.

    The codec encodes the states ``down`` and ``up``; ``down_bytes`` and ``up_bytes`` cross beside
    them as they are. What is computed takes ``flops``, and ``memory`` bytes.
    """

    down: State = field(default_factory=dict)
    up: State = field(default_factory=dict)
    down_bytes: int = 0
    up_bytes: int = 0
    flops: float = 0
    memory: int = 0


@dataclass(frozen=True)
class Load:
    """All that a round takes a device, piece after piece.

    In its first round it also receives ``keep_bytes`` and computes ``keep_flops``, once for all.
    """

    pieces: Sequence[Piece]
    keep_bytes: int = 0
    keep_flops: float = 0


Workload = Callable[[float], Load]  # by the share of the width that a device trains


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
    return {share: _cost(workload(share), codec) for share in co_shares(fleet)}


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


def _cost(load: Load, codec: Codec) -> TurnCost:
    down, up = (
        sum(codec.num_bytes(state) + beside for state, beside in crossing)
        for crossing in (
            [(each.down, each.down_bytes) for each in load.pieces],
            [(each.up, each.up_bytes) for each in load.pieces],
        )
    )
    flops = sum(each.flops for each in load.pieces)
    first = Work(down + load.keep_bytes, flops + load.keep_flops, up)
    memory = max(each.memory for each in load.pieces)
    return TurnCost(first, Work(down, flops, up), memory)
