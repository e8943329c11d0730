"""Models of several widths: a narrow one holds the leading channels of the wide one.

Diao, Ding and Tarokh, "HeteroFL", arXiv 2010.01264: each entry is averaged over those who hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dccl_flower.config import ConfError
from dccl_flower.learning.fusion import Copy, State
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.models.split import leading_block, narrow

_NARROWED: WeakKeyDictionary[nn.Module, dict[float, nn.Module]] = WeakKeyDictionary()


class Widths:
    """A model cut to several shares of its width; ``example`` holds images (N, C, H, W).

    Raises ConfError for a share that it cannot be cut to.
    """

    def __init__(self, model: nn.Module, example: Tensor, shares: Iterable[float]) -> None:
        self.modules: dict[float, nn.Module] = {}
        for share in sorted(set(shares)):
            try:
                self.modules[share] = narrow(model, example, share)
            except ConfError as error:
                raise ConfError(f"devices.profiles: co_share={share}: {error}") from error

    def part_of(self, state: State, share: float) -> State:
        """Return the part of the model's state that a share of its width holds."""
        return leading(state, exchanged_state(self.modules[share]))


def of_width(model: nn.Module, share: float, example: Callable[[], Tensor]) -> nn.Module:
    """Return a model of a share of the width, cut once a process: cutting takes seconds."""
    if share == 1:
        return model
    made = _NARROWED.setdefault(model, {})
    if share not in made:
        made[share] = narrow(model, example(), share)
    return made[share]


def leading(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> State:
    """Return the leading block of each tensor, as large as that of the same name in ``like``."""
    return {name: leading_block(tensor, like[name].shape) for name, tensor in state.items()}


def level(copies: Sequence[Copy], otherwise: State) -> list[Copy]:
    """Return copies as wide as ``otherwise``, whose weighted mean is that over who holds an entry.

    What a copy does not hold is filled with the mean of those that do, by sample count, and with
    ``otherwise`` where nobody does.
    """
    if all(t.shape == otherwise[n].shape for copy in copies for n, t in copy.state.items()):
        return list(copies)
    filling = {name: _mean_of_holders(name, copies, wide) for name, wide in otherwise.items()}
    return [replace(copy, state=_filled(copy.state, filling)) for copy in copies]


def _mean_of_holders(name: str, copies: Sequence[Copy], otherwise: Tensor) -> Tensor:
    total = torch.zeros(otherwise.shape, dtype=torch.float64)
    weight = torch.zeros_like(total)
    for copy in copies:
        shape = copy.state[name].shape
        leading_block(total, shape).add_(copy.state[name].double(), alpha=copy.count)
        leading_block(weight, shape).add_(copy.count)
    return torch.where(weight > 0, total / weight.clamp(min=1e-300), otherwise.double())


def _filled(state: State, filling: State) -> State:
    filled = {name: tensor.clone() for name, tensor in filling.items()}
    for name, tensor in state.items():
        leading_block(filled[name], tensor.shape).copy_(tensor)
    return filled
