"""A device's classifier of samples: which of those from outside could be its own.

The fine filter of CoDA (Gu et al., arXiv 2201.10382). The paper's abstract is all that is known of
it here; logistic regression, its inputs and cross-fitting are this project's choice.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from dccl_flower.data.samples import Samples
from dccl_flower.models.scoring import Recommender
from dccl_flower.models.wide_deep import mean_of_items


@torch.no_grad()
def classifier_inputs(
    model: Recommender, samples: Samples, *, with_label: bool, with_profile: bool
) -> np.ndarray:
    """Return what the classifier sees of each sample, (N, D): what the model makes of it.

    It is the model's representation beside the mean of the history's embeddings, and the label if
    asked for. All samples are shown to the model as one user's, and without the profile as of one
    profile: neither ever varies among a device's own samples, so they alone could tell the others.
    """
    constant = ("user",) if with_profile else ("user", "profile")
    shown = {**samples, **{name: torch.zeros_like(samples[name]) for name in constant}}
    seen = [model.represent(shown), mean_of_items(model.embedded, samples["history"])]
    label = [samples["label"].unsqueeze(1)] if with_label else []
    return torch.cat([*seen, *label], 1).double().numpy()


def local_probability(
    own: np.ndarray, outside: np.ndarray, seed: int, folds: int = 5
) -> np.ndarray:
    """Return how probable it is (M,) that each sample from outside is an own one.

    ``own`` (N, D) and ``outside`` (M, D) weigh the same in total, so p / (1 - p) estimates how much
    denser own samples lie there than those outside. Each sample is scored by a classifier that has
    not seen it, fitted on the other folds; there are no more folds than samples on either side.
    With fewer than two on one side no classifier can be fitted, and all are 0: nothing is kept.
    Raises ValueError for fewer than two folds.
    """
    if folds < 2:
        raise ValueError(f"folds={folds}: must be 2 or more")
    folds = min(folds, len(own), len(outside))
    if folds < 2:
        return np.zeros(len(outside))
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    is_own = np.repeat([1, 0], [len(own), len(outside)])
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    with threadpool_limits(1):  # a fit is so small that threads would only wait for each other
        scored = cross_val_predict(
            classifier, np.concatenate([own, outside]), is_own, cv=parts, method="predict_proba"
        )
    return scored[len(own) :, 1]


def keep_hard(probability: np.ndarray, threshold: float = 0.5) -> Tensor:
    """Return weights (M,) of 1 for samples that are own ones at least so probably, else 0.

    Raises ValueError unless the threshold is above 0, and 1 at most.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: must be above 0, and 1 at most")
    return torch.from_numpy(probability >= threshold).float()


def weigh_soft(probability: np.ndarray, cap: float) -> Tensor:
    """Return as weights (M,) the odds p / (1 - p), ``cap`` at most.

    Raises ValueError unless the cap is a number above 0.
    """
    if not 0 < cap < np.inf:
        raise ValueError(f"cap={cap}: must be a number above 0")
    clipped = np.minimum(probability, cap / (1 + cap))
    return torch.from_numpy(clipped / (1 - clipped)).float()
