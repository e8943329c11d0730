"""Fit a device's patches, and distil the devices' models into the cloud's and its patches.

MetaPatch and MoMoDistill, Yao et al., "Device-Cloud Collaborative Learning for Recommendation",
arXiv 2104.06624.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.data.samples import Samples
from dccl_flower.learning.recommend import FitRecipe, Logits, fit
from dccl_flower.models.patch import Encoder, MetaPatch
from dccl_flower.models.recommender import Recommender

_cross_entropy = partial(functional.binary_cross_entropy_with_logits, reduction="none")
Direction = Literal["teacher_student", "student_teacher"]


@dataclass(frozen=True)
class Distillation:
    """How much the cloud follows its teachers, ``beta`` times their divergence beside the labels.

    ``direction`` tells which side comes first in KL(first || second). Unless
    ``patches_see_labels``, bases and encoder learn of the teachers alone. Raises ValueError
    where ``beta`` is negative or infinite, and for another direction.
    """

    beta: float = 0.5
    direction: Direction = "teacher_student"
    patches_see_labels: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.beta < inf:
            raise ValueError(f"beta={self.beta}: must be a number of 0 or more")
        if self.direction not in get_args(Direction):
            names = " or ".join(get_args(Direction))
            raise ValueError(f"direction={self.direction}: must be {names}")

    def term(self, samples: Samples, logits: Tensor) -> Tensor:
        """Return ``beta`` times the mean divergence from the logits ``samples["teacher"]``."""
        teacher = samples["teacher"]
        is_forward = self.direction == "teacher_student"
        first, second = (teacher, logits) if is_forward else (logits, teacher)
        return self.beta * divergence(first, second).mean()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first || second) of the Bernoulli distributions of logits, element by element."""
    likely = first.sigmoid()
    return _cross_entropy(second, likely) - _cross_entropy(first, likely)


def pretrain_patches(
    model: Recommender,
    patch: MetaPatch,
    num_users: int,
    samples: Samples,
    recipe: FitRecipe,
    generator: torch.Generator,
) -> None:
    """Fit bases in place together with a vector for each user, so that they span how users differ.

    The model is frozen. The vectors start where the patched model is the unpatched, and are thrown
    away: devices find their own.
    """
    vectors = patch.start().repeat(num_users, 1).requires_grad_()

    def logits(batch: Samples) -> Tensor:
        return model(batch, patch.change(vectors[batch["user"]]))

    with _frozen(model):
        fit(logits, [*patch.parameters(), vectors], samples, recipe, generator)


def fit_vector(
    model: Recommender,
    patch: MetaPatch,
    samples: Samples,
    recipe: FitRecipe,
    generator: torch.Generator,
    start: Tensor | None = None,
) -> Tensor:
    """Return the vector (size,) that fits a device's samples; model and patch stay as they are.

    It learns from ``start`` on, or from where the patched model is the unpatched.
    """
    vector = (patch.start() if start is None else start).detach().clone().requires_grad_()
    with _frozen(model, patch):
        fit(lambda batch: model(batch, patch.change(vector)), [vector], samples, recipe, generator)
    return vector.detach()


def distil_model(
    model: Recommender,
    samples: Samples,
    teacher: Tensor,
    recipe: FitRecipe,
    settings: Distillation,
    generator: torch.Generator,
) -> float:
    """Fit the cloud's model in place to labels and to its teachers; return the last mean loss.

    The first stage of MoMoDistill: ``teacher`` (N,) are logits, each of the device that owns the
    sample.
    """
    taught = samples | {"teacher": teacher}
    return fit(model, model.parameters(), taught, recipe, generator, extra=settings.term)


def distil_patches(
    model: Recommender,
    patch: MetaPatch,
    encoder: Encoder,
    samples: Samples,
    vectors: Tensor,
    teacher: Tensor,
    recipe: FitRecipe,
    settings: Distillation,
    generator: torch.Generator,
) -> float:
    """Fit bases and encoder in place so that proxies answer as the devices' models do.

    The second stage: the model is frozen, learnt anew in the first. ``vectors`` (N, size) and
    ``teacher`` (N,) are those of each sample's device. Returns the last mean loss.
    """
    taught = samples | {"teacher": teacher, "vector": vectors}

    def without_labels(batch: Samples, logits: Tensor) -> Tensor:
        # Takes back what the fit adds on its own.
        return settings.term(batch, logits) - _cross_entropy(logits, batch["label"]).mean()

    with _frozen(model):
        return fit(
            proxy(model, patch, encoder),
            [*patch.parameters(), *encoder.parameters()],
            taught,
            recipe,
            generator,
            extra=settings.term if settings.patches_see_labels else without_labels,
        )


def proxy(model: Recommender, patch: MetaPatch, encoder: Encoder) -> Logits:
    """Return what gives logits (B,) of the model under patches of the encoder's vectors.

    It wants the devices' own vectors as ``samples["vector"]`` (B, size).
    """

    def logits(samples: Samples) -> Tensor:
        with torch.no_grad():
            represented = model.represent(samples)
        vectors = encoder(samples["vector"], represented, samples["profile"])
        return model(samples, patch.change(vectors))

    return logits


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Keep modules without gradients inside the block."""
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
