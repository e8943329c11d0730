"""Losses; each is made from the class counts of the side that trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
Counts = Callable[[], Tensor]


class LossRule(Protocol):
    """A loss that is still to be told whose samples it is for."""

    def made(self, class_counts: Counts) -> Loss:
        """Return the loss of a side.

        ``class_counts`` gives the samples a class (classes,), of all that the batches are drawn
        from; it may read all data, so it is called only where it matters.
        """


class CrossEntropy:
    """Plain cross-entropy; the counts do not matter."""

    def made(self, class_counts: Counts) -> Loss:
        """Return the loss of any side."""
        return functional.cross_entropy


class PriorCorrected:
    """Cross-entropy on logits shifted by the log prior of the side's own classes.

    A class that the side does not hold drops out of its softmax, so its row of the head is left
    alone; sides that share no class never learn to tell their classes apart. After Menon et al.,
    arXiv 2007.07314; for clients, Zhang et al., arXiv 2209.00189.
    """

    def made(self, class_counts: Counts) -> Loss:
        """Return the loss of a side with these samples a class."""
        counts = class_counts()
        log_prior = (counts.double() / counts.sum()).log().float()

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(logits + log_prior.to(logits.device), labels)

        return loss


LOSSES: dict[str, LossRule] = {"ce": CrossEntropy(), "prior_corrected": PriorCorrected()}
