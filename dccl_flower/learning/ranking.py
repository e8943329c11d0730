"""How well scores rank what each user is shown, user by user, and all users together."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_reciprocal_rank,
)


@dataclass(frozen=True)
class UserScores:
    """One user's AUC, HitRate@K, NDCG@K and reciprocal rank over ``count`` rows.

    The AUC is nan where all rows are of one class, the others where nothing is liked.
    """

    auc: float
    hit: float
    ndcg: float
    mrr: float
    count: int


def user_scores(logits: Tensor, labels: Tensor, k: int = 10) -> UserScores:
    """Return how well logits (N,) rank one user's rows, by their labels (N,) of 0 or 1.

    Only the order of the logits counts. In the AUC equal ones are half right; in the rest the row
    that is liked comes last among equals, so that a model that tells nothing apart gains nothing.
    Raises ValueError where rows are missing, and for logits that are nan.
    """
    if not len(logits) or logits.shape != labels.shape or k < 1:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"logits and labels of shapes {shapes}, k={k}: must be (N,) each, k >= 1")
    if logits.isnan().any():
        raise ValueError("logits: hold NaN")
    rows, target = len(logits), labels.long().cpu()
    if not target.any():
        return UserScores(nan, nan, nan, nan, rows)
    # Ranks from 1 in place of logits: torchmetrics takes the AUC of a sigmoid of what is not within
    # [0, 1], which makes large logits equal, and overlooks scores of 0 or less in the MRR.
    ranks = 1 + torch.unique(logits.cpu(), return_inverse=True)[1]
    auc = nan
    if not target.all():
        auc = binary_auroc(ranks / rows, target, validate_args=False).item()
    worst = (2 * ranks - target).double()
    return UserScores(
        auc,
        retrieval_hit_rate(worst, target, top_k=k).item(),
        retrieval_normalized_dcg(worst, target, top_k=k).item(),
        retrieval_reciprocal_rank(worst, target).item(),
        rows,
    )


def gauc(aucs: Tensor, counts: Tensor) -> float:
    """Return the mean of users' AUCs, weighed by their rows, over those who have one; else nan.

    GAUC, Zhou et al., arXiv 1706.06978.
    """
    known = ~aucs.isnan()
    weights = counts[known].double()
    return ((aucs[known].double() * weights).sum() / weights.sum()).item()


def paired_interval(
    differences: np.ndarray,
    weights: np.ndarray,
    generator: np.random.Generator,
    level: float = 0.95,
    draws: int = 2000,
) -> tuple[float, float]:
    """Return bounds for the weighted mean of users' differences, by drawing users anew.

    It is the percentile bootstrap; users whose difference is nan are left out. Raises ValueError
    where nobody is left, for a weight that is not above 0, and for a level outside (0, 1).
    """
    known = ~np.isnan(differences)
    kept, weights = differences[known], weights[known]
    if not len(kept) or not (weights > 0).all():
        raise ValueError("an interval needs users with a difference, of weights above 0")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must be between 0 and 1")
    drawn = (generator.integers(len(kept), size=len(kept)) for _ in range(draws))
    means = [np.average(kept[users], weights=weights[users]) for users in drawn]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
