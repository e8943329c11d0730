"""Whether two halves of a model are what was cut from it."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from dccl_flower.models.head import find_head

MOST_TIMES = 8


def check_halves(base: nn.Module, cloud: nn.Module, co: nn.Module) -> None:
    """Assert that each parameter is shared out: its leading part to the cloud, the rest to the co.

    A layer as wide as its block some times over has a part of each of the times, and one that reads
    what others give side by side a part of each of these. What is in no dimension cut is whole in
    both.
    """
    bias = f"{find_head(base)[0]}.bias"
    halves = [dict(each.named_parameters()) for each in (cloud, co)]
    for name, whole in base.named_parameters():
        leading, trailing = (half[name] for half in halves)
        for size, first, second in zip(whole.shape, leading.shape, trailing.shape, strict=True):
            assert first + second == size or first == second == size, name
        if holds(whole, leading, at_end=False):
            assert name == bias or holds(whole, trailing, at_end=True), name
        else:
            assert share_columns(whole, leading, trailing), name


def holds(whole: Tensor, part: Tensor, at_end: bool) -> bool:
    """Tell whether a part is the beginning, or the end, of the whole along each dimension."""
    sizes = list(zip(whole.shape, part.shape, strict=True))
    ways = [
        [t for t in range(1, MOST_TIMES + 1) if full % t == 0 == kept % t] if kept < full else [1]
        for full, kept in sizes
    ]
    for times in product(*ways):
        found = whole
        for dim, ((full, kept), time) in enumerate(zip(sizes, times, strict=True)):
            rows = torch.arange(full).view(time, full // time)
            each = kept // time
            chosen = rows[:, -each:] if at_end else rows[:, :each]
            found = found.index_select(dim, chosen.flatten())
        if torch.equal(found, part):
            return True
    return False


def share_columns(whole: Tensor, leading: Tensor, trailing: Tensor) -> bool:
    """Tell whether the inputs of a layer are shared out in order, and its outputs as ever."""
    if whole.dim() < 2:
        return False
    first = [column.tobytes() for column in columns(whole[: len(leading)])]
    last = [column.tobytes() for column in columns(whole[len(whole) - len(trailing) :])]
    try:
        of_cloud = [first.index(column.tobytes()) for column in columns(leading)]
        of_co = [last.index(column.tobytes()) for column in columns(trailing)]
    except ValueError:
        return False
    in_order = of_cloud == sorted(of_cloud) and of_co == sorted(of_co)
    return in_order and sorted(of_cloud + of_co) == list(range(whole.shape[1]))


def columns(weight: Tensor) -> np.ndarray:
    """Return what each input of a layer is multiplied by, an array a row."""
    return np.ascontiguousarray(weight.detach().transpose(0, 1).flatten(1).numpy())
