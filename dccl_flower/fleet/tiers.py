"""What devices of each tier train, and what a turn takes them."""

from __future__ import annotations

from torch import Tensor, nn

from dccl_flower.codecs import encode, encoded_bytes
from dccl_flower.config import ConfError, RoundsConf
from dccl_flower.fleet.clock import Work
from dccl_flower.fleet.profiles import Fleet, Tier
from dccl_flower.learning.cost import Cost, model_cost, training_memory, turn_flops
from dccl_flower.learning.fusion import State
from dccl_flower.learning.widths import leading
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.models.split import narrow


class Tiers:
    """Co-submodels of a fleet's widths, and the work and memory of training them.

    ``example`` holds images (N, C, H, W); ``blobs`` are what a device downloads before its first
    turn; ``samples`` what it trains on a turn. Every turn is taken to include the control's pass.
    Raises ConfError for a width that the co-submodel cannot be cut to.
    """

    def __init__(
        self,
        fleet: Fleet,
        co: nn.Module,
        control: nn.Module,
        example: Tensor,
        rounds: RoundsConf,
        blobs: dict[str, bytes],
        codec: str = "fp32",
    ) -> None:
        self._rounds = rounds
        self._blob_bytes = sum(map(len, blobs.values()))
        replayed = 2 if "exemplars" in blobs else 1
        self._batch_size = rounds.device_batch_size * replayed
        self._control = model_cost(control, example)
        self._states: dict[float, State] = {}
        self._costs: dict[float, Cost] = {}
        self._bytes: dict[float, int] = {}
        for share in {tier.co_share for tier in fleet.tiers}:
            try:
                module = narrow(co, example, share)
            except ConfError as error:
                raise ConfError(f"devices.profiles: co_share={share}: {error}") from error
            self._states[share] = exchanged_state(module)
            self._costs[share] = model_cost(module, example)
            self._bytes[share] = encoded_bytes(encode(codec, self._states[share]))

    def part_of(self, state: State, tier: Tier) -> State:
        """Return the part of the co-submodel's state that a tier trains."""
        return leading(state, self._states[tier.co_share])

    def work(self, tier: Tier, is_first: bool) -> Work:
        """Return the work of a turn; before its first one a device downloads the blobs."""
        moved = self._bytes[tier.co_share]
        images = self._rounds.local_steps * self._batch_size
        flops = turn_flops(self._costs[tier.co_share], self._control, images)
        return Work(moved + (self._blob_bytes if is_first else 0), flops, moved)

    def memory(self, tier: Tier) -> int:
        """Return the bytes that training takes."""
        has_momentum = self._rounds.momentum > 0
        cost = self._costs[tier.co_share]
        return training_memory(cost, self._control, self._batch_size, has_momentum)
