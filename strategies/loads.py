"""What turns take devices: a model that trains in steps, and pieces that others are made of."""

from __future__ import annotations

from torch import Tensor, nn

from dccl_flower.fleet.tiers import Load, Piece, Workload
from dccl_flower.image_config import RoundsConf
from dccl_flower.learning.cost import (
    FLOPS_A_MAC,
    Batch,
    Cost,
    model_cost,
    scoring_cost,
    training_memory,
    turn_flops,
)
from dccl_flower.learning.widths import Widths
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.recommendation_config import FitConf

ADAM_MOMENTS = 2


def in_steps(
    rounds: RoundsConf,
    widths: Widths,
    example: Tensor,
    control: nn.Module | None = None,
    batch_factor: int = 1,
    keep_bytes: int = 0,
) -> Workload:
    """Return the workload of a model that trains in every width, and goes down and up.

    A step takes ``batch_factor`` times a batch of ``rounds``; ``example`` holds images
    (N, C, H, W); ``keep_bytes`` are what a device downloads before its first turn. Every turn is
    taken to include the pass of ``control``, which only scores.
    """
    batch_size = batch_factor * rounds.device_batch_size

    def load(share: float) -> Load:
        beside = Cost() if control is None else model_cost(control, example)
        module = widths.modules[share]
        cost, state = model_cost(module, example), exchanged_state(module)
        flops = turn_flops(cost, beside, rounds.local_steps * batch_size)
        memory = training_memory(cost, beside, batch_size, int(rounds.momentum > 0))
        return Load([Piece(state, state, flops=flops, memory=memory)], keep_bytes)

    return load


def fitting(model: nn.Module, example: Batch, conf: FitConf, samples: float) -> Piece:
    """Return what it takes to fit what learns of a model to so many samples, by Adam."""
    cost = model_cost(model, example)
    memory = training_memory(cost, Cost(), conf.batch_size, ADAM_MOMENTS)
    return Piece(flops=conf.epochs * samples * cost.training_flops, memory=memory)


def scoring(model: nn.Module, example: Batch, batch_size: int, samples: float) -> Piece:
    """Return what it takes to score so many samples, in batches."""
    cost = scoring_cost(model, example)
    memory = cost.state_bytes + batch_size * cost.layer_bytes
    return Piece(flops=FLOPS_A_MAC * samples * cost.forward_macs, memory=memory)
