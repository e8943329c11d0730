"""What a device makes of other users' samples: which count, and a model trained with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dccl_flower.data.samples import Samples, count, taken
from dccl_flower.learning.augmented import fit_augmented, learn_from_users
from dccl_flower.learning.recommend import FitRecipe, fit
from dccl_flower.learning.sample_classifier import (
    classifier_inputs,
    keep_hard,
    local_probability,
    taste_inputs,
    weigh_soft,
)
from dccl_flower.models.recommender import Recommender

GROUP = "group"  # of an outside sample: samples of one user have the same number, 0 or more


@dataclass(frozen=True)
class Sieve:
    """How samples from outside are sifted; the keys of the section ``sieve``."""

    keeps: str
    threshold: float
    cap: float
    folds: int
    strength: float
    sees: str
    with_label: bool
    with_profile: bool


def train_sifted(
    model: Recommender,
    own: Samples,
    outside: Samples,
    sieve: Sieve,
    recipe: FitRecipe,
    generator: torch.Generator,
) -> Tensor:
    """Train the model in place on own samples and sifted ones (M); return the latter's weights."""
    groups = outside.pop(GROUP)
    if sieve.keeps == "users":
        kept = _learn_by_user(model, own, outside, groups, recipe, generator)
        fit(model, model.parameters(), own, recipe, generator)
        return kept
    weights = _weights(model, own, outside, sieve, generator)
    fit_augmented(model, own, outside, weights, recipe, generator)
    return weights


def _weights(
    model: Recommender, own: Samples, outside: Samples, sieve: Sieve, generator: torch.Generator
) -> Tensor:
    if sieve.keeps == "all":
        return torch.ones(count(outside))
    inside, beyond = (_seen(model, each, sieve) for each in (own, outside))
    seed = int(torch.randint(2**31, (), generator=generator))
    probability = local_probability(inside, beyond, seed, sieve.folds, sieve.strength)
    if sieve.keeps == "hard":
        return keep_hard(probability, sieve.threshold)
    return weigh_soft(probability, sieve.cap)


def _seen(model: Recommender, samples: Samples, sieve: Sieve) -> np.ndarray:
    if sieve.sees == "taste":
        return taste_inputs(model, samples)
    return classifier_inputs(
        model, samples, with_label=sieve.with_label, with_profile=sieve.with_profile
    )


def _learn_by_user(
    model: Recommender,
    own: Samples,
    outside: Samples,
    groups: Tensor,
    recipe: FitRecipe,
    generator: torch.Generator,
) -> Tensor:
    """Pass over each user's samples once, and keep what helps; the most similar user is first."""
    users = [taken(outside, groups == group) for group in groups.unique()]
    kept = learn_from_users(model, own, users, replace(recipe, epochs=1), generator)
    return torch.tensor(kept, dtype=torch.float32)[groups]
