"""What a turn takes devices of each tier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dccl_flower.codecs import Codec, encoded_bytes
from dccl_flower.fleet.clock import Work
from dccl_flower.fleet.profiles import Fleet, Tier
from dccl_flower.learning.cost import Cost, model_cost, training_memory, turn_flops
from dccl_flower.learning.widths import Widths
from dccl_flower.models.frozen import exchanged_state


@dataclass(frozen=True)
class Workload:
    """A turn of a method: what trains in every width, what only scores beside it, and how much.

    ``example`` holds images (N, C, H, W); ``images`` are those of a turn, ``batch_size`` those of a
    step; ``keep_bytes`` are what a device downloads before its first turn. Every turn is taken to
    include the pass of ``control``.
    """

    widths: Widths
    example: Tensor
    images: int
    batch_size: int
    has_momentum: bool
    control: nn.Module | None = None
    keep_bytes: int = 0


class Tiers:
    """Work and memory of a fleet's tiers."""

    def __init__(self, fleet: Fleet, workload: Workload, codec: Codec) -> None:
        self._workload = workload
        control = workload.control
        self._control = Cost() if control is None else model_cost(control, workload.example)
        self._costs: dict[float, Cost] = {}
        self._bytes: dict[float, int] = {}
        for share in {tier.co_share for tier in fleet.tiers}:
            module = workload.widths.modules[share]
            self._costs[share] = model_cost(module, workload.example)
            self._bytes[share] = encoded_bytes(codec.encode(exchanged_state(module)))

    def work(self, tier: Tier, is_first: bool) -> Work:
        """Return the work of a turn; before its first one a device downloads what it keeps."""
        moved = self._bytes[tier.co_share]
        flops = turn_flops(self._costs[tier.co_share], self._control, self._workload.images)
        return Work(moved + (self._workload.keep_bytes if is_first else 0), flops, moved)

    def memory(self, tier: Tier) -> int:
        """Return the bytes that training takes."""
        cost, workload = self._costs[tier.co_share], self._workload
        return training_memory(cost, self._control, workload.batch_size, workload.has_momentum)
