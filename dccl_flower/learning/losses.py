"""Losses by name; each is made from the class counts of the side that trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(class_counts: Tensor) -> Loss:
    """Return plain cross-entropy; the counts do not matter."""
    return functional.cross_entropy


def prior_corrected(class_counts: Tensor) -> Loss:
    """Return cross-entropy on logits shifted by the log prior of the side's own classes.

    A class that the side does not hold drops out of its softmax, so its row of the head is left
    alone; sides that share no class never learn to tell their classes apart. After Menon et al.,
    arXiv 2007.07314; for clients, Zhang et al., arXiv 2209.00189.
    """
    log_prior = (class_counts.double() / class_counts.sum()).log().float()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits + log_prior.to(logits.device), labels)

    return loss


LOSSES: dict[str, Callable[[Tensor], Loss]] = {
    "ce": cross_entropy,
    "prior_corrected": prior_corrected,
}
NEED_COUNTS = {"prior_corrected"}


def make_loss(name: str, class_counts: Callable[[], Tensor]) -> Loss:
    """Return a loss by name; samples are counted, which may read all data, only for those in need.

    ``class_counts`` gives the samples a class (classes,), of all that the batches are drawn from.
    """
    return LOSSES[name](class_counts() if name in NEED_COUNTS else torch.empty(0))
