"""Train the co-submodel on pooled data: what a federation of both sides cannot do, as a bound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dccl_flower.config import TwoSidedRoundsConf
from dccl_flower.data.loader import Loader, endless
from dccl_flower.learning.controlled import round_recipe, train_controlled
from dccl_flower.learning.losses import Loss

OnRound = Callable[[int], None]


def train_pooled(
    co: nn.Module,
    control: nn.Module,
    loader: Loader,
    loss: Loss,
    rounds: TwoSidedRoundsConf,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    after_round: OnRound = lambda done: None,
) -> None:
    """Take as many steps as a side takes in all rounds, in place, under the rounds' schedule.

    Momentum runs through and batch norms see mixed batches: rounds only tell the rate.
    """
    batches = endless(loader, generator)
    momentum: dict[str, Tensor] = {}
    for server_round in range(1, rounds.count + 1):
        recipe = round_recipe(rounds, server_round)
        train_controlled(co, control, batches, loss, recipe, device, momentum=momentum)
        after_round(server_round)
