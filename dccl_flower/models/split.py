"""Vertical split of a base model by width into a cloud submodel and a co-submodel.

Ding et al., "DC-CCL", arXiv 2303.10361. torch-pruning's dependency graph finds the layers
that must be cut together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dccl_flower.config import ConfError
from dccl_flower.models.dependencies import trace
from dccl_flower.models.frozen import Frozen, exchanged_state, frozen_names
from dccl_flower.models.head import find_head
from dccl_flower.models.stand_ins import StandIn, put_stand_ins
from dccl_flower.time_limit import time_limit

CUT_LAYERS = (nn.Conv2d, nn.Linear)
CUT_SECONDS = 60.0  # for some models torch-pruning's search takes hours
OWN_WIDTHS = ("hidden_dim", "embed_dim", "num_features")  # what a model knows of itself


def vertical_split(
    model: nn.Module, example: Tensor, co_ratio: float = 0.125, shared_stem: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Return the cloud submodel and the co-submodel, which share out a model's channels.

    >>> from torch import nn, zeros
    >>> base = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> cloud, co = vertical_split(base, zeros(2, 1, 8, 8), co_ratio=1 / 8)
    >>> cloud[1].out_features, co[1].out_features
    (28, 4)

    As :func:`slice_cloud` and :func:`slice_co`, which say what is raised.
    """
    halves = [cut(model, example, co_ratio, shared_stem) for cut in (slice_cloud, slice_co)]
    return halves[0], halves[1]


def slice_cloud(
    base: nn.Module, example: Tensor, co_ratio: float, shared_stem: bool = False
) -> nn.Module:
    """Return the cloud submodel: of every layer the channels ``[0, 1 - co_ratio)``.

    Both halves keep the base model's weights and a head over all classes; the head's bias goes
    to the cloud alone, so that the two add up. A shared stem (first convolution and its norm)
    stays at full width in both and is frozen in the co-submodel. ``example``: images (N, C, H, W).
    Raises ConfError for a shared stem that other layers are coupled to, or a layer that is too
    narrow, and TimeoutError after a minute.
    """
    stem = stem_names(base) if shared_stem else []
    return _cut(base, example, co_ratio, stem, keep_cloud=True)


def slice_co(
    base: nn.Module, example: Tensor, co_ratio: float, shared_stem: bool = False
) -> nn.Module:
    """Return the co-submodel that :func:`slice_cloud` leaves: the rest of the channels."""
    stem = stem_names(base) if shared_stem else []
    co = _cut(base, example, co_ratio, stem, keep_cloud=False)
    _, head = find_head(co)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    for name in stem:
        co.set_submodule(name, Frozen(co.get_submodule(name)))
    return co


def narrow(co: nn.Module, example: Tensor, share: float) -> nn.Module:
    """Return a co-submodel of the leading ``share`` of each layer's channels, frozen parts whole.

    Raises ConfError where the layers cannot be cut so.
    """
    if share == 1:
        return copy.deepcopy(co)
    stem = [f"{name}.module" for name in frozen_names(co)]
    narrowed = _cut(co, example, 1 - share, stem, keep_cloud=True)
    wide = exchanged_state(co)
    for name, tensor in exchanged_state(narrowed).items():
        if not torch.equal(tensor, leading_block(wide[name], tensor.shape)):
            raise ConfError(f"co_share={share}: the channels of {name!r} are not leading ones")
    return narrowed


def stem_names(model: nn.Module) -> list[str]:
    """Return the names of the first convolution and of the batch norm right behind it."""
    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    first = next(i for i, (_, m) in enumerate(leaves) if isinstance(m, nn.Conv2d))
    behind = leaves[first + 1 : first + 2]
    return [leaves[first][0]] + [n for n, m in behind if isinstance(m, _BatchNorm)]


def leading_block(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a view of the first entries along each dimension."""
    return tensor[tuple(slice(size) for size in shape)]


def co_channels(channels: int, co_ratio: float) -> int:
    """Return how many of a layer's channels the co-submodel gets: at least one, never all."""
    return max(1, min(channels - 1, round(channels * co_ratio)))


def _cut(
    base: nn.Module, example: Tensor, co_ratio: float, stem: list[str], keep_cloud: bool
) -> nn.Module:
    with time_limit(CUT_SECONDS):
        return _one_half(base, example, co_ratio, stem, keep_cloud)


def _one_half(
    base: nn.Module, example: Tensor, co_ratio: float, stem: list[str], keep_cloud: bool
) -> nn.Module:
    model = copy.deepcopy(base)
    stand_ins = {each.layer: each for each in put_stand_ins(model, example)}
    _, head = find_head(model, name=find_head(base, example=example)[0])
    graph = trace(model, example)
    kept_whole = [head] + [model.get_submodule(name) for name in stem]
    gone: dict[tuple[nn.Module, bool], set[int]] = {}  # of each layer's inputs and outputs
    for group in list(graph.get_all_groups([head], root_module_types=list(CUT_LAYERS))):
        root = group[0].dep.target.module
        outputs = [dep.target.module for dep, _ in group if _cuts_outputs(dep)]
        if any(module in kept_whole for module in outputs):
            if len(outputs) > 1:
                raise ConfError(
                    f"model.shared_stem=true: {stem[0]} is coupled to {len(outputs) - 1} other "
                    "layers; a shared stem is for plain nets such as VGG"
                )
            continue
        channels, name = graph.get_out_channels(root), graph._module2name[root]
        unit = math.lcm(*(_unit(dep.target.module, stand_ins) for dep, _ in group))
        if channels < 2 * unit or channels % unit:
            at_a_time = f", of which heads or groups take {unit} at a time" if unit > 1 else ""
            raise ConfError(f"layer {name} is too narrow to cut: {channels} wide{at_a_time}")
        first_co = channels - unit * co_channels(channels // unit, co_ratio)
        drop = range(first_co, channels) if keep_cloud else range(first_co)
        pruned = graph.get_pruning_group(root, group[0].dep.handler, list(drop))
        for dep, indices in pruned:
            gone[dep.target.module, "out_channels" in dep.handler.__name__] = set(indices)
        pruned.prune()
        for attribute in OWN_WIDTHS:
            if getattr(model, attribute, None) == channels:
                setattr(model, attribute, channels - len(drop))
    for layer, each in stand_ins.items():
        model.set_submodule(each.name, each.cut(gone.get((layer, False)), gone.get((layer, True))))
    model.zero_grad()
    with torch.no_grad():
        model.eval()(example)
    return model.train()


def _unit(module: nn.Module, stand_ins: Mapping[nn.Module, StandIn]) -> int:
    """Return by how many channels at a time a module can be cut."""
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        return module.num_channels // module.num_groups
    return stand_ins[module].unit if module in stand_ins else 1


def _cuts_outputs(dep: tp.Dependency) -> bool:
    return isinstance(dep.target.module, CUT_LAYERS) and "out_channels" in dep.handler.__name__
