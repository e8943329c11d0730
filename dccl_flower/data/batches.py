"""Data behind one protocol; a loader of another kind is adapted once, at the border."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

IMAGE_KEYS = ("image", "img", "images", "pixel_values")
LABEL_KEYS = ("label", "labels", "target", "targets")
Pair = tuple[Tensor, Tensor]


class Batches(Protocol):
    """Samples in batches (images (B, ...), targets (B,)); iterating gives all, unaugmented.

    ``is_fixed`` tells that every epoch shows the same pixels, known by position: then it is a
    :class:`FixedBatches`. Make one of any loader with :func:`as_batches`.
    """

    @property
    def targets(self) -> Tensor:
        """Targets of all samples, in the order of one pass; may read the data."""

    @property
    def num_samples(self) -> int:
        """Number of samples."""

    @property
    def is_fixed(self) -> bool:
        """Whether the images are the same in every epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Pair]: ...

    def epoch(self, generator: torch.Generator) -> Iterator[Pair]:
        """Yield every sample once for training, shuffled and augmented."""

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return other images, changed as an epoch changes its own."""

    def in_fixed_order(self) -> Batches:
        """Return the same samples, in the same order at each iteration."""

    def taken(self, chosen: Tensor) -> dict[str, Tensor]:
        """Return ``images`` and ``labels`` at positions (K,), and what normalises the images."""


class FixedBatches(Batches, Protocol):
    """Batches whose images stay, so that what is computed of them may be kept."""

    def with_targets(self, targets: Tensor) -> FixedBatches:
        """Return the same samples with other targets, by position."""

    def in_batches_of(self, batch_size: int) -> FixedBatches:
        """Return the same samples in batches of another size."""

    def content_digest(self) -> str:
        """Return a hash of the images and of what normalises them."""


def as_batches(
    loader: Iterable[Any], image_key: str | None = None, label_key: str | None = None
) -> Batches:
    """Return a loader of any kind as Batches; what is one already comes back as it is.

    A loader yields (images, labels) or dicts, whose keys are given or plain by their names. It is
    iterated anew for each epoch, by its ``epoch(generator)`` where it has one. Nothing is read
    here. Raises ValueError for an iterator; reading raises it for a batch of another form.
    """
    if hasattr(loader, "is_fixed"):
        return cast(Batches, loader)
    if isinstance(loader, Iterator):
        kind = type(loader).__name__
        raise ValueError(
            f"a loader of type {kind}: can be read once only; expected one that each epoch reads "
            "anew, such as a DataLoader or a list"
        )
    return ForeignBatches(loader, image_key, label_key)


def endless(loader: Iterable[Any], generator: torch.Generator) -> Iterator[Pair]:
    """Yield batches for ever, epoch by epoch. Raises ValueError where there is none."""
    batches = as_batches(loader)
    while True:
        yield from _not_none(batches.epoch(generator))


@dataclass(frozen=True)
class ForeignBatches:
    """Batches of a loader that shuffles by itself, if at all; each look at targets is a pass."""

    loader: Iterable[Any]
    image_key: str | None = None
    label_key: str | None = None

    is_fixed = False

    @property
    def targets(self) -> Tensor:
        return torch.cat([labels for _, labels in self])

    @property
    def num_samples(self) -> int:
        dataset = getattr(self.loader, "dataset", None)
        return _length(dataset, lambda: sum(len(labels) for _, labels in self))

    def __len__(self) -> int:
        return _length(self.loader, lambda: sum(1 for _ in self))

    def __iter__(self) -> Iterator[Pair]:
        return self._pairs(self.loader)

    def epoch(self, generator: torch.Generator) -> Iterator[Pair]:
        own = getattr(self.loader, "epoch", None)
        return self._pairs(own(generator) if callable(own) else self.loader)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images

    def in_fixed_order(self) -> ForeignBatches:
        return ForeignBatches(list(iter(self)))  # list(self) may take a pass to count

    def taken(self, chosen: Tensor) -> dict[str, Tensor]:
        images, labels = (torch.cat(parts) for parts in zip(*iter(self), strict=True))
        return {"images": images[chosen], "labels": labels[chosen]}

    def _pairs(self, batches: Iterable[Any]) -> Iterator[Pair]:
        for batch in _not_none(batches):
            yield checked(*pair_of(batch, self.image_key, self.label_key))


def pair_of(batch: Any, image_key: str | None = None, label_key: str | None = None) -> Pair:
    """Return (images, labels) of a batch. Raises ValueError where it is no such pair."""
    if isinstance(batch, Mapping):
        return (
            batch[_key(batch, image_key, "image_key", IMAGE_KEYS)],
            batch[_key(batch, label_key, "label_key", LABEL_KEYS)],
        )
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    raise ValueError(
        f"a batch is a {type(batch).__name__}{size}: expected (images, labels), or a dict of both"
    )


def checked(images: Any, labels: Any) -> Pair:
    """Return a batch with labels (B,) int64; labels (B, 1) lose their second dimension.

    Raises ValueError where images are not finite, or labels no class number for each image.
    """
    images, labels = _tensor(images, "images"), _tensor(labels, "labels")
    if images.dim() == 0:
        raise ValueError("images: one number; expected a Tensor (B, ...)")
    if images.is_floating_point() and not images.isfinite().all():
        raise ValueError("images: hold NaN or infinity")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.shape != images.shape[:1]:
        given = f"{tuple(labels.shape)} beside {len(images)} images"
        raise ValueError(f"labels of shape {given}: expected one class number for each image")
    if len(labels) and (labels.is_floating_point() or labels.min() < 0):
        wrong = labels[0] if labels.is_floating_point() else labels.min()
        raise ValueError(f"labels such as {wrong.item()}: expected integers from 0")
    return images, labels.long()


def _not_none(batches: Iterable[Any]) -> Iterator[Any]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ValueError("the loader yields no batch")


def _key(batch: Mapping[str, Any], given: str | None, name: str, usual: tuple[str, ...]) -> str:
    found = [given] if given is not None else [key for key in usual if key in batch]
    if len(found) == 1 and found[0] in batch:
        return found[0]
    keys = ", ".join(map(str, batch))
    said = "is not clear" if given is None else f"{given!r} is not among them"
    raise ValueError(f"a batch has the keys {keys}: {name} {said}; name it in as_batches")


def _length(sized: Any, counted: Callable[[], int]) -> int:
    try:
        return len(sized)
    except TypeError:
        return counted()


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise ValueError(f"{name} of type {kind}: expected a Tensor (B, ...)") from error
