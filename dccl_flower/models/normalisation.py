"""Normalisation layers of the co-submodel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dccl_flower.models.frozen import frozen_prefixes

CHANNELS_PER_GROUP = 4


def to_group_norm(model: nn.Module) -> None:
    """Replace every batch norm outside frozen parts by a group norm with the same scale and shift.

    Group norm knows no batch statistics, so sides with different classes can be averaged
    (Wu and He, arXiv 1803.08494). Activations that a library fused into its norm layer stay.
    """
    for name, module in _outside_frozen(model):
        if isinstance(module, _BatchNorm) and module.affine:
            model.set_submodule(name, _group_norm_like(module))


def standardise_weights(model: nn.Module) -> None:
    """Replace every plain convolution outside frozen parts by one that standardises its weights.

    It helps group norm to train as batch norm does (Qiao et al., arXiv 1903.10520). Kernels of a
    single weight, which cannot be standardised, and a library's own kinds of convolution stay.
    """
    for name, module in _outside_frozen(model):
        if (
            type(module) is nn.Conv2d
            and module.padding_mode == "zeros"
            and module.weight[0].numel() > 1
        ):
            model.set_submodule(name, _standardised_like(module))


@dataclass(frozen=True)
class NormRule:
    """What becomes of the co-submodel's batch norms, in the model and in the rounds.

    ``late_statistics``: what its steps use in late rounds. ``pooled``: fusion pools the statistics
    as those of one mixture. ``changes`` replace layers of the model, in place and in their order.
    """

    late_statistics: str = "batch"
    pooled: bool = False
    changes: tuple[Callable[[nn.Module], None], ...] = ()


NORM_RULES = {
    "batch": NormRule(),
    "batch_frozen": NormRule("frozen"),
    "batch_fused": NormRule("fused", pooled=True),
    "batch_mixed": NormRule("mixed", pooled=True),
    "group": NormRule(changes=(to_group_norm,)),
    "group_ws": NormRule(changes=(to_group_norm, standardise_weights)),
}


def _outside_frozen(model: nn.Module) -> list[tuple[str, nn.Module]]:
    frozen = frozen_prefixes(model)
    named = model.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in named if not name.startswith(frozen)]


def _standardised_like(conv: nn.Conv2d) -> nn.Module:
    from timm.layers import StdConv2d

    options: dict[str, Any] = {
        name: getattr(conv, name)
        for name in ("kernel_size", "stride", "padding", "dilation", "groups")
    }
    has_bias = conv.bias is not None
    standardised = StdConv2d(conv.in_channels, conv.out_channels, bias=has_bias, **options)
    standardised.load_state_dict(conv.state_dict())
    return standardised


def _group_norm_like(batch_norm: _BatchNorm) -> nn.Module:
    channels = batch_norm.num_features
    groups = max(1, channels // CHANNELS_PER_GROUP)
    while channels % groups:
        groups -= 1
    group_norm = nn.GroupNorm(groups, channels, eps=batch_norm.eps)
    group_norm.load_state_dict({"weight": batch_norm.weight, "bias": batch_norm.bias})
    # timm's BatchNormAct2d carries the drop and activation that follow the norm.
    after = [getattr(batch_norm, name, None) for name in ("drop", "act")]
    tail = [module for module in after if isinstance(module, nn.Module)]
    return nn.Sequential(group_norm, *tail) if tail else group_norm
