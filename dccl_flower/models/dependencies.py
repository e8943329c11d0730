"""Which layers of a model must be cut together: torch-pruning's dependency graph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn


def trace(model: nn.Module, example: Tensor) -> tp.DependencyGraph:
    """Return the graph of a model that maps ``example`` (N, C, H, W)."""
    with warnings.catch_warnings():
        # Of parameters of the model's own, such as a layer scale, the channels come last.
        warnings.filterwarnings("ignore", "Unwrapped parameters detected")
        norms = {type(m): _NormPruner() for m in model.modules() if isinstance(m, nn.LayerNorm)}
        return _Graph().build_dependency(model, example, customized_pruners=norms)


class _NormPruner(tp.pruner.function.LayernormPruner):
    """Leaves the channels of a layer norm in their order, which torch-pruning's own may not."""

    def prune_out_channels(self, layer: nn.LayerNorm, idxs: Sequence[int]) -> nn.LayerNorm:
        lost = set(idxs)
        kept = [index for index in range(layer.normalized_shape[-1]) if index not in lost]
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(parameter.detach()[..., kept]))
        layer.normalized_shape = (*layer.normalized_shape[:-1], len(kept))
        return layer

    prune_in_channels = prune_out_channels


class _Graph(tp.DependencyGraph):
    """Knows that to flatten positions leaves the channels as they are."""

    def _trace(self, *args: Any, **options: Any) -> dict[nn.Module, tp.dependency.Node]:
        nodes = super()._trace(*args, **options)
        for node in nodes.values():
            if node.type == tp.ops.OPTYPE.RESHAPE and _keeps_channels(node.grad_fn):
                node.type = tp.ops.OPTYPE.ELEMENTWISE
        return nodes


def _keeps_channels(view: Any) -> bool:
    names = ("_saved_self_sym_sizes", "_saved_self_sizes")  # of newer and of older torch
    before = next((getattr(view, name) for name in names if hasattr(view, name)), ())
    shapes = [tuple(before), tuple(view._input_metadata[0].shape)]
    ends = [(shape[1], shape[-1]) for shape in shapes if len(shape) > 2]
    return len(ends) == 2 and (ends[0][0] == ends[1][0] or ends[0][1] == ends[1][1])
