"""What training needs to know of a side's data: counts, priors, and exemplars mixed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dccl_flower.data.batches import Batches, Pair, endless
from dccl_flower.data.loader import normalise

Chooser = Callable[[Batches], Tensor]


def class_counts(batches: Batches, num_classes: int) -> Tensor:
    """Return the samples a class (classes,), reading labels only where the batches offer them."""
    return torch.bincount(batches.targets, minlength=num_classes)


def take_exemplars(batches: Batches, choose: Chooser) -> dict[str, Tensor]:
    """Return the samples whose positions (K,) ``choose`` picks, as ``Batches.taken`` gives them.

    Positions are those of one pass, which ``choose`` is given to look at.
    """
    batches = batches.in_fixed_order()
    return batches.taken(choose(batches))


def exemplar_images(exemplars: dict[str, Tensor]) -> Tensor:
    """Return the images of :func:`take_exemplars` as models take them."""
    if "mean" not in exemplars:
        return exemplars["images"]
    pixels, mean, std = (exemplars[name].numpy() for name in ("images", "mean", "std"))
    return normalise(pixels, mean, std)


def balanced_rows(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` random positions whose labels are as evenly spread as they can be."""
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.empty_like(order)
    for label in labels.unique():
        of_class = order[labels[order] == label]
        rank[of_class] = torch.arange(len(of_class))
    return order[rank[order].argsort(stable=True)][:count]


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
