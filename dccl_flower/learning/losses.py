"""Losses; each is made from the class counts of the side that trains."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
# The samples a class (classes,), of all that the batches are drawn from. To count may mean to
# read all data, so it is done only where it matters.
Counts = Callable[[], Tensor]


def prior_corrected(class_counts: Counts) -> Loss:
    """Return cross-entropy on logits shifted by the log prior of the side's own classes.

    A class that the side does not hold drops out of its softmax, so its row of the head is left
    alone; sides that share no class never learn to tell their classes apart. After Menon et al.,
    arXiv 2007.07314; for clients, Zhang et al., arXiv 2209.00189.
    """
    counts = class_counts()
    log_prior = (counts.double() / counts.sum()).log().float()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits + log_prior.to(logits.device), labels)

    return loss


LOSSES: dict[str, Callable[[Counts], Loss]] = {
    "ce": lambda class_counts: functional.cross_entropy,
    "prior_corrected": prior_corrected,
}
