"""What training needs to know of a side's data: counts, priors, and exemplars mixed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dccl_flower.data.loader import ImageLoader, Loader, augmented, normalise

Chooser = Callable[[Loader], Tensor]


def class_counts(loader: Loader, num_classes: int) -> Tensor:
    """Return the samples a class (classes,), reading labels only where the loader offers them."""
    return torch.bincount(labels_of(loader), minlength=num_classes)


def labels_of(loader: Loader) -> Tensor:
    """Return the labels (N,) of all samples in the loader's order."""
    if isinstance(loader, ImageLoader):
        return loader.targets
    return torch.cat([targets for _, targets in loader])


def num_samples(loader: Loader) -> int:
    """Return the number of samples behind a loader."""
    if isinstance(loader, ImageLoader):
        return loader.num_samples
    if hasattr(loader, "dataset"):
        return len(loader.dataset)
    return sum(len(targets) for _, targets in loader)


def take_exemplars(loader: Loader, choose: Chooser) -> dict[str, Tensor]:
    """Return the samples whose positions (K,) ``choose`` picks from those of a loader.

    An ImageLoader gives ``images`` (N, H, W, C) uint8 with the ``mean`` and ``std`` to normalise
    them; any other loader is read once and gives ``images`` as it yields them. ``labels`` (N,).
    """
    if isinstance(loader, ImageLoader):
        chosen = choose(loader)
        return {
            "images": torch.from_numpy(loader.images[loader.rows[chosen.numpy()]]),
            "labels": loader.targets[chosen],
            "mean": torch.from_numpy(loader.mean),
            "std": torch.from_numpy(loader.std),
        }
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    chosen = choose([(images, labels)])
    return {"images": images[chosen], "labels": labels[chosen]}


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
    batches: Iterator[tuple[Tensor, Tensor]],
    exemplars: dict[str, Tensor],
    generator: torch.Generator,
    augment: str = "none",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Join to every batch as many exemplars, drawn with replacement (experience replay).

    ``augment`` is what ImageLoader does to the batches; a few exemplars are soon known by heart.
    """
    shared_images, shared_labels = exemplar_images(exemplars), exemplars["labels"]
    for images, labels in batches:
        drawn = torch.randint(len(shared_labels), (len(labels),), generator=generator)
        shared = augmented(shared_images[drawn], augment, generator)
        yield torch.cat([images, shared]), torch.cat([labels, shared_labels[drawn]])


def replayed_counts(counts: Tensor, exemplars: dict[str, Tensor]) -> Tensor:
    """Return class weights of batches that are half own samples and half exemplars."""
    shared = torch.bincount(exemplars["labels"], minlength=len(counts))
    return counts / counts.sum() + shared / shared.sum()
