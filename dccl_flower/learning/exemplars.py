"""Samples that the cloud shares: how they are chosen, and mixed into a device's batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.types import Device

from dccl_flower.data.batches import Batches, Pair, endless
from dccl_flower.data.loader import normalise
from dccl_flower.learning.evaluate import predict
from dccl_flower.models.head import find_head


def class_counts(batches: Batches, num_classes: int) -> Tensor:
    """Return the samples a class (classes,), reading labels only where the batches offer them."""
    return torch.bincount(batches.targets, minlength=num_classes)


def exemplar_images(exemplars: dict[str, Tensor]) -> Tensor:
    """Return the images of ``Batches.taken`` as models take them."""
    if "mean" not in exemplars:
        return exemplars["images"]
    return normalise(*(exemplars[name].numpy() for name in ("images", "mean", "std")))


def balanced_rows(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` random positions whose labels are as evenly spread as they can be."""
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.empty_like(order)
    for label in labels.unique():
        of_class = order[labels[order] == label]
        rank[of_class] = torch.arange(len(of_class))
    return order[rank[order].argsort(stable=True)][:count]


def herded_rows(features: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return ``count`` positions, as evenly over the classes as they reach.

    Within a class each next sample is the one that brings the mean of those chosen closest to
    the mean of all (herding as in iCaRL, Rebuffi et al., arXiv 1611.07725). ``features`` (N, F)
    are normalised to length one first; ``labels`` (N,).
    """
    features = functional.normalize(features.double(), dim=1)
    orders = []
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        orders.append(rows[_herd(features[rows], min(count, len(rows)))].tolist())
    in_turn = [row for rank in zip_longest(*orders) for row in rank if row is not None]
    return torch.tensor(in_turn[:count], dtype=torch.long)


def _herd(features: Tensor, count: int) -> list[int]:
    """Return the positions of the first ``count`` herded samples of one class, in order."""
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    order: list[int] = []
    for taken in range(count):
        distances = ((total + features) / (taken + 1) - mean).norm(dim=1)
        distances[order] = torch.inf
        order.append(int(distances.argmin()))
        total = total + features[order[-1]]
    return order


def head_inputs(
    model: nn.Module, batches: Batches, device: Device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return what reaches the model's head, (N, F), and the labels (N,), in eval mode."""
    features: list[Tensor] = []
    _, head = find_head(model)
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].cpu()))
    try:
        _, labels = predict(model, batches, device)
    finally:
        hook.remove()
    return torch.cat(features), labels


def with_exemplars(
    batches: Batches, exemplars: dict[str, Tensor], generator: torch.Generator
) -> Iterator[Pair]:
    """Yield batches for ever, each with as many exemplars, drawn with replacement.

    This is experience replay. Exemplars are augmented as the samples are; a few are soon known by
    heart.
    """
    shared_images, shared_labels = exemplar_images(exemplars), exemplars["labels"]
    for images, labels in endless(batches, generator):
        drawn = torch.randint(len(shared_labels), (len(labels),), generator=generator)
        shared = batches.augmented(shared_images[drawn], generator)
        yield torch.cat([images, shared]), torch.cat([labels, shared_labels[drawn]])


def replayed_counts(counts: Tensor, exemplars: dict[str, Tensor]) -> Tensor:
    """Return class weights of batches that are half own samples and half exemplars."""
    shared = torch.bincount(exemplars["labels"], minlength=len(counts))
    return counts / counts.sum() + shared / shared.sum()
