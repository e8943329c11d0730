"""Train a device's own model on samples of other users beside its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional

from dccl_flower.data.samples import Samples, joined
from dccl_flower.learning.ranking import user_scores
from dccl_flower.learning.recommend import FitRecipe, fit, predict
from dccl_flower.models.scoring import Recommender

Quality = Callable[[Tensor, Tensor], float]  # of logits (N,) and labels (N,); more is better


def area_under_curve(logits: Tensor, labels: Tensor) -> float:
    """Return the AUC, nan where all labels are the same."""
    return user_scores(logits, labels).auc


def negative_loss(logits: Tensor, labels: Tensor) -> float:
    """Return the mean log-likelihood, which is known for any labels."""
    return -functional.binary_cross_entropy_with_logits(logits, labels).item()


def fit_augmented(
    model: Recommender,
    own: Samples,
    outside: Samples,
    weights: Tensor,
    recipe: FitRecipe,
    generator: torch.Generator,
) -> float:
    """Train the model in place on own samples and weighed ones; return the last epoch's loss.

    ``weights`` (M,) are those of the samples from outside, an own one has a weight of 1. The last
    step of CoDA, Gu et al., arXiv 2201.10382.
    """
    together = torch.cat([torch.ones_like(own["label"]), weights])
    samples = joined([own, outside])
    return fit(model, model.parameters(), samples, recipe, generator, together)


def learn_from_users(
    model: Recommender,
    own: Samples,
    users: Iterable[Samples],
    recipe: FitRecipe,
    generator: torch.Generator,
    quality: Quality = area_under_curve,
    threshold: float = 1e-7,
) -> list[bool]:
    """Train the model in place on one user's samples after another; return whose were kept.

    What is learnt of a user is kept where the quality on the own samples rises by more than the
    threshold, and undone where it does not, as where no quality is known (nan). MPDA, Yan et al.,
    KDD 2022, whose last step is to :func:`fit` on the own samples; the authors train by SGD.
    """
    best = quality(predict(model, own), own["label"])
    kept = []
    for samples in users:
        before = deepcopy(model.state_dict())
        fit(model, model.parameters(), samples, recipe, generator)
        reached = quality(predict(model, own), own["label"])
        kept.append(reached > best + threshold)
        if kept[-1]:
            best = reached
        else:
            model.load_state_dict(before)
    return kept
