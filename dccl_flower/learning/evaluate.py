"""Accuracies of single submodels and of their sums, and how close the mimic comes to the cloud."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.types import Device

from dccl_flower.data.batches import Batches
from dccl_flower.models.frozen import load_exchanged


@dataclass(frozen=True)
class Scores:
    """Accuracies as fractions: over all test samples, over cloud classes, over device classes."""

    accuracy: float
    accuracy_cloud_classes: float
    accuracy_device_classes: float


@dataclass(frozen=True)
class Fidelity:
    """Mean squared error of logits, share of equal top-1 classes, and KL(cloud || mimic) in nats.

    All NaN where there are no samples.
    """

    logit_mse: float
    agreement: float
    kl: float


@torch.inference_mode()
def predict(model: nn.Module, batches: Batches, device: Device = "cpu") -> tuple[Tensor, Tensor]:
    """Return logits (N, classes) in eval mode and the targets, both on the CPU."""
    was_training = model.training
    model.eval()
    logits, targets = [], []
    for images, batch_targets in batches:
        logits.append(model(images.to(device)).float().cpu())
        targets.append(batch_targets.cpu())
    model.train(was_training)
    return torch.cat(logits), torch.cat(targets)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows whose largest logit is the label's; NaN without rows."""
    return (logits.argmax(1) == labels).float().mean().item()


def fidelity(cloud_logits: Tensor, mimic_logits: Tensor) -> Fidelity:
    """Compare logits (N, classes) on the same samples."""
    own, wanted = mimic_logits.log_softmax(1), cloud_logits.log_softmax(1)
    return Fidelity(
        functional.mse_loss(mimic_logits, cloud_logits).item(),
        accuracy(mimic_logits, cloud_logits.argmax(1)),
        functional.kl_div(own, wanted, reduction="batchmean", log_target=True).item(),
    )


def score_sides(
    logits: Tensor, labels: Tensor, cloud_classes: Sequence[int], device_classes: Sequence[int]
) -> Scores:
    """Return the accuracies over all samples and over those of each side's classes."""
    sides = [_rows_of(labels, classes) for classes in (cloud_classes, device_classes)]
    return Scores(
        accuracy(logits, labels), *(accuracy(logits[rows], labels[rows]) for rows in sides)
    )


class Scorer:
    """Score states of the co-submodel on one test set.

    The frozen submodels' logits are computed once; ``co`` is copied, so that scoring does not
    meet training.
    """

    def __init__(
        self,
        cloud: nn.Module,
        mimic: nn.Module,
        co: nn.Module,
        batches: Batches,
        cloud_classes: Sequence[int],
        device_classes: Sequence[int],
        device: Device = "cpu",
    ) -> None:
        self._co = copy.deepcopy(co)
        self._batches = batches.in_fixed_order()
        self._device = device
        self._cloud_logits, self._labels = predict(cloud, self._batches, device)
        self._mimic_logits, _ = predict(mimic, self._batches, device)
        self._classes = (cloud_classes, device_classes)

    def references(self) -> dict[str, dict[str, float]]:
        """Return the scores of cloud submodel and mimic alone, and how close the mimic comes.

        The latter is told for the samples of cloud and of device classes apart.
        """
        cloud, mimic = (
            asdict(self._scores(logits)) for logits in (self._cloud_logits, self._mimic_logits)
        )
        sides = zip(("cloud_classes", "device_classes"), self._classes, strict=True)
        for side, classes in sides:
            rows = _rows_of(self._labels, classes)
            close = fidelity(self._cloud_logits[rows], self._mimic_logits[rows])
            mimic |= {f"{name}_{side}": value for name, value in asdict(close).items()}
        return {"cloud_submodel": cloud, "mimic": mimic}

    def served(self, state: dict[str, Tensor]) -> tuple[Scores, float]:
        """Return the scores of cloud + co, and the accuracy of mimic + co."""
        load_exchanged(self._co, state)
        co_logits, _ = predict(self._co, self._batches, self._device)
        mimic_co = accuracy(self._mimic_logits + co_logits, self._labels)
        return self._scores(self._cloud_logits + co_logits), mimic_co

    def _scores(self, logits: Tensor) -> Scores:
        return score_sides(logits, self._labels, *self._classes)


def _rows_of(labels: Tensor, classes: Sequence[int]) -> Tensor:
    return torch.isin(labels, torch.tensor(list(classes)))
