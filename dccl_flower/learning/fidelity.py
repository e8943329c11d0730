"""How close the mimic comes to the cloud submodel it was distilled from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Fidelity:
    """Mean squared error of logits, share of equal top-1 classes, and KL(cloud || mimic) in nats.

    All NaN where there are no samples.
    """

    logit_mse: float
    agreement: float
    kl: float


def fidelity(cloud_logits: Tensor, mimic_logits: Tensor) -> Fidelity:
    """Compare logits (N, classes) on the same samples."""
    if len(cloud_logits) == 0:
        return Fidelity(float("nan"), float("nan"), float("nan"))
    divergence = functional.kl_div(
        mimic_logits.log_softmax(1),
        cloud_logits.log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return Fidelity(
        functional.mse_loss(mimic_logits, cloud_logits).item(),
        (mimic_logits.argmax(1) == cloud_logits.argmax(1)).float().mean().item(),
        divergence.item(),
    )
