"""Co-submodels of several widths: a narrow one holds the leading channels of the wide one.

Diao, Ding and Tarokh, "HeteroFL", arXiv 2010.01264: each entry is averaged over those who hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dccl_flower.learning.fusion import Copy, State


def leading(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> State:
    """Return the leading block of each tensor, as large as that of the same name in ``like``."""
    return {name: _block(tensor, like[name].shape) for name, tensor in state.items()}


def level(copies: Sequence[Copy], otherwise: State) -> list[Copy]:
    """Return copies as wide as ``otherwise``, whose weighted mean is that over who holds an entry.

    What a copy does not hold is filled with the mean of those that do, by sample count, and with
    ``otherwise`` where nobody does.
    """
    if all(_is_full(copy.state, otherwise) for copy in copies):
        return list(copies)
    filling = {name: _mean_of_holders(name, copies, wide) for name, wide in otherwise.items()}
    return [replace(copy, state=_filled(copy.state, filling)) for copy in copies]


def _is_full(state: State, like: State) -> bool:
    return all(tensor.shape == like[name].shape for name, tensor in state.items())


def _mean_of_holders(name: str, copies: Sequence[Copy], otherwise: Tensor) -> Tensor:
    total = torch.zeros(otherwise.shape, dtype=torch.float64)
    weight = torch.zeros_like(total)
    for copy in copies:
        shape = copy.state[name].shape
        _block(total, shape).add_(copy.state[name].double(), alpha=copy.count)
        _block(weight, shape).add_(copy.count)
    return torch.where(weight > 0, total / weight.clamp(min=1e-300), otherwise.double())


def _filled(state: State, filling: State) -> State:
    filled = {name: tensor.clone() for name, tensor in filling.items()}
    for name, tensor in state.items():
        _block(filled[name], tensor.shape).copy_(tensor)
    return filled


def _block(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor[tuple(slice(size) for size in shape)]
