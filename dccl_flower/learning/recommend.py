"""Fit what scores samples of user-item logs, a whole model or a few numbers of it, and use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.data.samples import Samples, count, taken
from dccl_flower.learning.pretrain import OnEpoch, tell_nobody

Logits = Callable[[Samples], Tensor]  # of a batch (B), as (B,)
ExtraLoss = Callable[[Samples, Tensor], Tensor]  # of a batch and its logits, one number


@dataclass(frozen=True)
class FitRecipe:
    """Adam for so many epochs; gradients are clipped to ``max_grad_norm``, at 0 they are not.

    Raises ValueError for no epochs, empty batches or a rate that is not above 0.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0

    def __post_init__(self) -> None:
        for key, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if value < 1:
                raise ValueError(f"{key}={value}: must be 1 or more")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: must be above 0")


def fit(
    logits: Logits,
    parameters: Iterable[Tensor],
    samples: Samples,
    recipe: FitRecipe,
    generator: torch.Generator,
    weights: Tensor | None = None,
    extra: ExtraLoss | None = None,
    on_epoch: OnEpoch = tell_nobody,
) -> float:
    """Minimise binary cross-entropy over the parameters in place; return the last epoch's loss.

    The generator shuffles each epoch. ``weights`` (N,) of 0 or more are scaled to a mean of one; a
    sample of weight 0 counts as absent. ``extra`` is added to the loss of every batch. Raises
    ValueError for weights out of bounds, and where no sample is left.
    """
    samples, weights = _weighed(samples, weights)
    learnt, number = list(parameters), count(samples)
    optimizer = torch.optim.Adam(learnt, recipe.lr, weight_decay=recipe.weight_decay)
    total = torch.zeros((), dtype=torch.float64)
    for epoch in range(recipe.epochs):
        total = torch.zeros_like(total)
        order = torch.randperm(number, generator=generator)
        for chosen in order.split(recipe.batch_size):
            batch = taken(samples, chosen)
            scores = logits(batch)
            loss = functional.binary_cross_entropy_with_logits(
                scores, batch["label"], weights[chosen]
            )
            if extra is not None:
                loss = loss + extra(batch, scores)
            optimizer.zero_grad()
            loss.backward()
            if recipe.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(learnt, recipe.max_grad_norm)
            optimizer.step()
            total += len(chosen) * loss.detach().cpu()
        on_epoch(epoch + 1, recipe.epochs, total.item() / number)
    return total.item() / number


@torch.no_grad()
def predict(logits: Logits, samples: Samples, batch_size: int = 4096) -> Tensor:
    """Return the logits (N,) of all samples, in their order."""
    places = torch.arange(count(samples)).split(batch_size)
    return torch.cat([logits(taken(samples, chosen)) for chosen in places])


def _weighed(samples: Samples, weights: Tensor | None) -> tuple[Samples, Tensor]:
    """Return the samples that have a weight, and their weights with a mean of one."""
    if weights is None:
        weights = torch.ones_like(samples["label"])
    if weights.shape != samples["label"].shape:
        given = f"{tuple(weights.shape)} for {count(samples)} samples"
        raise ValueError(f"weights of shape {given}: must be one a sample")
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError("weights: must be numbers of 0 or more")
    counts = weights > 0
    if not counts.any():
        raise ValueError("fit needs at least one sample, of a weight above 0")
    left = weights[counts]
    return taken(samples, counts), left / left.mean()
