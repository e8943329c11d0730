"""The cloud/device split: pure functions on labels that return index arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dccl_flower.config import ConfError, SplitConf
from dccl_flower.seeds import numpy_generator


@dataclass(frozen=True)
class Sides:
    """Indices of the training samples that each side holds, and the classes each stands for."""

    cloud: np.ndarray
    devices: np.ndarray
    cloud_classes: list[int]
    device_classes: list[int]


def subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a stratified random part of the samples, as sorted indices."""
    if fraction >= 1:
        return np.arange(len(labels))
    draw = numpy_generator(seed, "subset")
    parts = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        parts.append(draw.choice(rows, max(1, round(len(rows) * fraction)), replace=False))
    return np.sort(np.concatenate(parts))


def split_sides(
    labels: np.ndarray,
    rows: np.ndarray,
    conf: SplitConf,
    seed: int,
    groups: np.ndarray | None = None,
    count: int = 0,
) -> Sides:
    """Share the samples ``rows`` out to the cloud and to the devices.

    By classes: the devices hold the device classes, and a share ``mix`` of their samples is
    replaced by cloud-class samples in equal numbers, which leave the cloud. By fraction: the
    devices hold a random share of every class.

    With ``groups``, one id a sample, whole groups go to one side. By classes ``count`` groups are
    drawn among those with a device class: the devices hold these groups' device classes, mixed with
    cloud-class samples of the same groups, and the cloud the cloud classes of all other groups.
    By fraction groups are drawn until the devices have their share. What then lies on neither side
    is not used.

    Raises ConfError for a class in both lists or in neither, for a mix that the side it comes from
    cannot serve, and for more devices than there are groups to draw.
    """
    classes = np.unique(labels).tolist()
    draw = numpy_generator(seed, "split")
    inside = outside = rows
    if conf.by == "classes":
        _check_classes(conf, classes)
    if groups is not None:
        drawn = _drawn_groups(labels[rows], groups[rows], conf, seed, count)
        is_inside = np.isin(groups[rows], drawn)
        inside, outside = rows[is_inside], rows[~is_inside]
        if conf.by == "fraction":
            return Sides(outside, inside, classes, classes)
    if conf.by == "fraction":
        chosen = draw.permutation(rows)[: round(len(rows) * conf.device_fraction)]
        return Sides(np.setdiff1d(rows, chosen), np.sort(chosen), classes, classes)
    return _sides_by_classes(labels, inside, outside, conf, draw)


def _sides_by_classes(
    labels: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
    conf: SplitConf,
    draw: np.random.Generator,
) -> Sides:
    """Return the sides where ``inside`` may go to the devices and ``outside`` to the cloud."""
    own = inside[np.isin(labels[inside], conf.device_classes)]
    mixed_in = _draw_mix(labels, inside, conf, round(len(own) * conf.mix), draw)
    kept = draw.choice(own, len(own) - len(mixed_in), replace=False)
    cloud = outside[np.isin(labels[outside], conf.cloud_classes)]
    return Sides(
        np.setdiff1d(cloud, mixed_in),
        np.sort(np.concatenate([kept, mixed_in])),
        sorted(conf.cloud_classes),
        sorted(conf.device_classes),
    )


def hold_out(
    labels: np.ndarray, rows: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (training part, validation part) of ``rows``, stratified by class.

    Every class keeps a training sample. Raises ConfError where none is left to validate on.
    """
    draw = numpy_generator(seed, "validation")
    if not len(rows):
        raise ConfError("split: leaves the cloud no samples")
    parts = []
    for label in np.unique(labels[rows]):
        of_class = rows[labels[rows] == label]
        wanted = min(max(1, round(len(of_class) * share)), len(of_class) - 1)
        parts.append(draw.choice(of_class, wanted, replace=False))
    validation = np.sort(np.concatenate(parts))
    if not len(validation):
        raise ConfError(f"data.validation={share}: the cloud has one sample a class, none to spare")
    return np.setdiff1d(rows, validation), validation


def _drawn_groups(
    labels: np.ndarray, groups: np.ndarray, conf: SplitConf, seed: int, count: int
) -> np.ndarray:
    """Return the ids of the groups that make the devices' side, in random order."""
    by_classes = conf.by == "classes"
    if by_classes:
        groups = groups[np.isin(labels, conf.device_classes)]
    found, sizes = np.unique(groups, return_counts=True)
    order = numpy_generator(seed, "groups").permutation(len(found))
    if not by_classes:
        share = round(len(groups) * conf.device_fraction)
        taken = int(np.searchsorted(np.cumsum(sizes[order]), share)) + 1
        return found[order[:taken]]
    if count > len(found):
        raise ConfError(f"devices.count={count}: the devices' data have {len(found)} ids")
    return found[order[:count]]


def _draw_mix(
    labels: np.ndarray, rows: np.ndarray, conf: SplitConf, total: int, draw: np.random.Generator
) -> np.ndarray:
    """Draw ``total`` cloud-class samples, the same number of each class up to one."""
    base, extra = divmod(total, len(conf.cloud_classes))
    parts = []
    for place, label in enumerate(sorted(conf.cloud_classes)):
        wanted = base + (place < extra)
        available = rows[labels[rows] == label]
        if wanted > len(available):
            raise ConfError(
                f"split.mix={conf.mix}: needs {wanted} samples of class {label}, "
                f"there are {len(available)}"
            )
        parts.append(draw.choice(available, wanted, replace=False))
    return np.concatenate(parts)


def _check_classes(conf: SplitConf, classes: list[int]) -> None:
    lists = {"split.cloud_classes": conf.cloud_classes, "split.device_classes": conf.device_classes}
    for key, values in lists.items():
        if not values:
            raise ConfError(f"{key}=[]: must name at least one class of {classes}")
        if len(set(values)) < len(values):
            raise ConfError(f"{key}={values}: names a class twice")
        for value in values:
            if value not in classes:
                raise ConfError(f"{key}={values}: class {value} is not among {classes}")
    both = sorted(set(conf.cloud_classes) & set(conf.device_classes))
    neither = sorted(set(classes) - set(conf.cloud_classes) - set(conf.device_classes))
    given = f"split.device_classes={conf.device_classes}"
    if both:
        raise ConfError(f"{given}: class {both[0]} is in split.cloud_classes too")
    if neither:
        raise ConfError(f"{given}: class {neither[0]} is in neither list")
