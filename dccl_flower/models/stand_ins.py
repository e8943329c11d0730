"""Stand-ins for what a dependency graph cannot look into, while it is traced.

Attention works on whole heads and a grouped convolution on whole groups: each such part is cut as
one, with all that its width decides inside. To the graph it is a norm over the same channels.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

HEADS = ("num_heads", "n_heads", "heads", "nheads")
WIDTHS = (
    *("in_features", "out_features", "in_channels", "out_channels", "num_features", "groups"),
    *("embed_dim", "hidden_dim", "dim", "attn_dim", "kdim", "vdim", "normalized_shape"),
    "head_dim",
)
COORDINATES = (2, 3)
MERGED = 4  # positions that become one where a merger halves height and width
MOST_TIMES = 8  # the width of a hidden layer over that of its block
Shapes = dict[str, tuple[torch.Size, torch.Size]]


@dataclass(frozen=True)
class StandIn:
    """A part of a model that is cut as one, and the layer that stands in its place meanwhile.

    Of its ``channels`` only whole multiples of ``unit`` can go; ``heads`` have a unit each.
    """

    name: str
    part: nn.Module
    layer: nn.Module
    channels: int
    unit: int = 1
    heads: int = 1
    gives: int = 0  # output channels, where they are others

    def cut(self, inputs: Collection[int] | None, outputs: Collection[int] | None) -> nn.Module:
        """Return the part without those of its input and output channels."""
        lost = inputs or outputs or ()
        left = [index for index in range(self.channels) if index not in lost]
        if isinstance(self.part, nn.Conv2d):
            return _cut_groups(self.part, left)
        if isinstance(self.layer, _Merger):
            given = self.gives
            kept = {MERGED * self.channels: self._times(MERGED, left)}
            kept[given] = [index for index in range(given) if index not in (outputs or ())]
        else:
            times = range(1, MOST_TIMES + 1)
            kept = {self.channels * each: self._times(each, left) for each in times}
            if self.heads > 1:
                kept[self.heads] = [index // self.unit for index in left[:: self.unit]]
        _cut_inside(self.part, kept)
        return self.part

    def _times(self, times: int, kept: Sequence[int]) -> list[int]:
        """Return what is kept of a layer that has the channels some times over."""
        return [index + time * self.channels for time in range(times) for index in kept]


def put_stand_ins(model: nn.Module, example: Tensor) -> list[StandIn]:
    """Put stand-ins in the place of what must be cut as one, and return them.

    Found by running the model on ``example`` (N, C, H, W).
    """
    shapes = _watched(model, example)
    found = [*_attention(model, shapes), *_mergers(model, shapes)]
    inside = tuple(f"{each.name}." for each in found)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith(inside) and _is_grouped(module):
            layer = copy.deepcopy(module)
            layer.groups = channels = module.in_channels
            layer.weight = nn.Parameter(module.weight.detach()[:, :1].clone())
            found.append(StandIn(name, module, layer, channels, channels // module.groups))
    for each in found:
        model.set_submodule(each.name, each.layer)
    return found


class _Tokens(nn.LayerNorm):
    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return super().forward(input)


class _Maps(nn.BatchNorm2d):
    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return super().forward(input)


class _Merger(nn.Linear):
    """Stands for a layer that joins each two by two positions of (N, H, W, C) to one."""

    def forward(self, input: Tensor, *_: Any) -> Tensor:
        # A slice of positions would pass for one of channels.
        pool = functional.avg_pool2d if input.dim() == 4 else functional.avg_pool1d
        pooled = pool(input.movedim(-1, 1), 2 if input.dim() == 4 else MERGED)
        return super().forward(pooled.movedim(1, -1))


def _watched(model: nn.Module, example: Tensor) -> Shapes:
    """Return the shapes of what goes into and comes out of each module that is called once."""
    shapes: Shapes = {}
    calls: dict[str, int] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        output = output[0] if isinstance(output, tuple) else output
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            shapes[name] = inputs[0].shape, output.shape

    hooks = [m.register_forward_hook(partial(note, n)) for n, m in model.named_modules() if n]
    with torch.no_grad():
        model.eval()(example)
    for hook in hooks:
        hook.remove()
    return {name: found for name, found in shapes.items() if calls[name] == 1}


def _attention(model: nn.Module, shapes: Shapes) -> list[StandIn]:
    modules = dict(model.named_modules())
    found: dict[str, StandIn] = {}
    for name, module in modules.items():
        heads = next((h for a in HEADS if isinstance(h := getattr(module, a, None), int)), 0)
        channels = _projected(module, shapes[name][0]) if heads and name in shapes else 0
        if not channels or channels % heads:
            continue
        around = name
        while _is_square(above := around.rpartition(".")[0], channels, shapes):
            if not _scales(modules[above], channels, heads):
                break
            around = above
        if around == name and shapes[name][0] != shapes[name][1]:
            continue
        is_last = shapes[around][0][-1] == channels
        layer = _Tokens(channels) if is_last else _Maps(channels)
        unit = channels // heads if heads > 1 else 1
        found[around] = StandIn(around, modules[around], layer.eval(), channels, unit, heads)
    return list(found.values())


def _projected(module: nn.Module, shape: torch.Size) -> int:
    """Return the channels that the module's own layers read of what it is given; 0 for none."""
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    read = {layer.in_features for layer in module.children() if isinstance(layer, nn.Linear)}
    if shape[-1] in read:
        return shape[-1]
    maps = {layer.in_channels for layer in module.children() if isinstance(layer, nn.Conv2d)}
    return shape[1] if len(shape) == 4 and shape[1] in maps else 0


def _is_square(name: str, channels: int, shapes: Shapes) -> bool:
    if name not in shapes:
        return False
    given, returned = shapes[name]
    return given == returned and channels in (given[-1], given[1])


def _scales(block: nn.Module, channels: int, heads: int) -> bool:
    """Tell whether all layers inside have widths that are multiples of the block's, or heads."""
    widths = {channels * times for times in range(1, MOST_TIMES + 1)} | {1, heads}
    layers = [m for m in block.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.LayerNorm)]
    own = [h for m in block.modules() for a in HEADS if isinstance(h := getattr(m, a, None), int)]
    return set(own) == {heads} and all(
        set(layer.weight.shape[:2]) <= widths for layer in layers if layer.weight is not None
    )


def _mergers(model: nn.Module, shapes: Shapes) -> Iterator[StandIn]:
    for name, module in model.named_modules():
        if name not in shapes or isinstance(module, nn.Linear):
            continue
        given, returned = shapes[name]
        read = {layer.in_features for layer in module.children() if isinstance(layer, nn.Linear)}
        positions = [shape.numel() // shape[-1] for shape in (given, returned)]
        if MERGED * given[-1] in read and positions[0] == MERGED * positions[1]:
            layer = _Merger(given[-1], returned[-1])
            yield StandIn(name, module, layer, given[-1], gives=returned[-1])


def _is_grouped(conv: nn.Conv2d) -> bool:
    return 1 < conv.groups < conv.in_channels == conv.out_channels


def _cut_groups(conv: nn.Conv2d, kept: Sequence[int]) -> nn.Module:
    width = conv.in_channels // conv.groups
    for name, parameter in conv.named_parameters(recurse=False):
        setattr(conv, name, nn.Parameter(parameter.detach()[list(kept)].clone()))
    conv.in_channels = conv.out_channels = len(kept)
    conv.groups = len(kept) // width
    return conv


def _cut_inside(part: nn.Module, kept: Mapping[int, Sequence[int]]) -> None:
    """Keep what is kept of every dimension, and of every width, of such a size."""
    for module in part.modules():
        reads_coordinates = _reads_coordinates(module)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or not _is_cut(module, name):
                continue
            of_channels = tensor.shape[:2] if isinstance(module, nn.Conv2d) else tensor.shape
            for dim, size in enumerate(of_channels):
                if size not in kept or (dim == 1 and reads_coordinates):
                    continue
                index = torch.tensor(kept[size], device=tensor.device)
                tensor = tensor.detach().index_select(dim, index)
            is_parameter = name in module._parameters
            setattr(module, name, nn.Parameter(tensor.detach()) if is_parameter else tensor)
        for name in set(vars(module)) & {*WIDTHS, *HEADS}:
            width = getattr(module, name)
            if name == "in_features" and reads_coordinates:
                continue
            if isinstance(width, tuple) and len(width) == 1 and width[0] in kept:
                setattr(module, name, (len(kept[width[0]]),))
            elif isinstance(width, int) and width in kept:
                setattr(module, name, len(kept[width]))


def _reads_coordinates(module: nn.Module) -> bool:
    """Tell a layer that reads positions, which may be as many numbers as there are heads."""
    if not isinstance(module, nn.Linear):
        return False
    return module.in_features in COORDINATES and module.out_features > max(COORDINATES)


def _is_cut(module: nn.Module, name: str) -> bool:
    is_learned = name in module._parameters or name.endswith("bias")
    return is_learned or isinstance(module, _BatchNorm)
