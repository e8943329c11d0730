"""Statistics of batch norms: telling them from weights, measuring them, pooling them over sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dccl_flower.models.frozen import frozen_prefixes

MEAN, VARIANCE = "running_mean", "running_var"
ONE_VALUE = "more than 1 value per channel"  # what torch says of it


def is_statistic(name: str) -> bool:
    """Tell whether an entry of a state is a running mean or variance."""
    return name.endswith((MEAN, VARIANCE))


def training_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of a step.

    One image may leave a batch norm one value a channel, which has no variance: the logits are then
    those of eval mode, without gradient, and nothing in the model changes.
    """
    if len(images) > 1:
        return model(images)
    held = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        return model(images)
    except ValueError as error:
        if ONE_VALUE not in str(error):
            raise
        for buffer, before in held:
            buffer.copy_(before)
        model.eval()
        with torch.no_grad():
            return model(images)
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def measured_statistics(model: nn.Module) -> Iterator[None]:
    """Replace running statistics, at the end of the block, by those of all inputs seen in it.

    Inside, batch norms in eval mode normalise with what they hold, so every side of a federation
    computes the same function. Frozen parts are left alone, and so are norms that saw no input.
    """
    meters = [_Meter(norm) for norm in _trained_norms(model).values()]
    try:
        yield
        for meter in meters:
            meter.write()
    finally:
        for meter in meters:
            meter.hook.remove()


@dataclass(frozen=True)
class OtherSide:
    """What batch norms saw on the other side, and this side's share of the mixture of both."""

    statistics: Mapping[str, Tensor]
    own_share: float


@contextmanager
def mixed_statistics(model: nn.Module, other: OtherSide) -> Iterator[None]:
    """Let batch norms normalise, in the block, with the mixture of their batch and the other side.

    Every side then computes nearly what one model on pooled batches would, gradients through the
    statistics of its own batch included. Without word of the other side a norm takes what it holds.
    """
    norms = _trained_norms(model)

    def seen_there(name: str, norm: _BatchNorm, kind: str) -> Tensor:
        held = getattr(norm, kind)
        return other.statistics.get(f"{name}.{kind}", held.clone()).to(held.device)

    for name, norm in norms.items():
        mean, variance = (seen_there(name, norm, kind) for kind in (MEAN, VARIANCE))
        mixed = partial(_mixed_forward, norm, mean, variance, other.own_share)
        norm.forward = mixed  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms.values():
            del norm.forward


def pooled_statistics(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Return the means and variances of the mixture of the sides' inputs.

    Unlike a plain average, the variance counts how far the sides' means lie apart (the law of
    total variance). ``weights`` sum to one.
    """
    pooled: dict[str, Tensor] = {}
    for mean_name in (name for name in states[0] if name.endswith(MEAN)):
        variance_name = mean_name.removesuffix(MEAN) + VARIANCE
        means = torch.stack([state[mean_name].double() for state in states])
        variances = torch.stack([state[variance_name].double() for state in states])
        share = torch.tensor(weights, dtype=torch.float64).unsqueeze(1)
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean) ** 2)).sum(0)
        pooled[mean_name] = mean.to(states[0][mean_name].dtype)
        pooled[variance_name] = variance.to(states[0][variance_name].dtype)
    return pooled


def step_statistics(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return ``after`` with statistics only that share of the way from ``before``.

    What a layer measures was normalised by the layers below with their last statistics. Small
    steps keep that lag from building up through a deep net.
    """
    return {
        name: torch.lerp(before[name], tensor, share) if is_statistic(name) else tensor
        for name, tensor in after.items()
    }


class _Meter:
    """Sum a norm's inputs and their squares a channel, around the mean it holds."""

    def __init__(self, norm: _BatchNorm) -> None:
        self._mean = cast(Tensor, norm.running_mean)
        self._variance = cast(Tensor, norm.running_var)
        self._count = 0
        self._sum = torch.zeros_like(self._mean, dtype=torch.float64)
        self._squares = torch.zeros_like(self._sum)
        self.hook = norm.register_forward_pre_hook(self._add)

    def _add(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Centred and in float64: sums of squares of large means would lose a small variance.
        inputs_by_channel = inputs[0].detach().double().transpose(0, 1).flatten(1)
        values = inputs_by_channel - self._mean.unsqueeze(1)
        self._count += values.shape[1]
        self._sum += values.sum(1)
        self._squares += (values**2).sum(1)

    def write(self) -> None:
        if self._count == 0:
            return
        shift = self._sum / self._count
        self._variance.copy_((self._squares / self._count - shift**2).clamp(min=0))
        self._mean.add_(shift.to(self._mean.dtype))


def _mixed_forward(
    norm: _BatchNorm, other_mean: Tensor, other_variance: Tensor, own_share: float, x: Tensor
) -> Tensor:
    dims = [dim for dim in range(x.dim()) if dim != 1]
    own_variance, own_mean = torch.var_mean(x, dims, correction=0)
    mean = torch.lerp(other_mean, own_mean, own_share)
    own = own_variance + (own_mean - mean) ** 2
    others = other_variance + (other_mean - mean) ** 2
    scale = norm.weight * torch.rsqrt(torch.lerp(others, own, own_share) + norm.eps)
    shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    return x * scale.view(shape) + (norm.bias - mean * scale).view(shape)


def _trained_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    frozen = frozen_prefixes(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and not name.startswith(frozen)
    }
