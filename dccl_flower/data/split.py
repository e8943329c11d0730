"""The cloud/device split: pure functions on labels that return index arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from dccl_flower.config import ConfError
from dccl_flower.data.labels import class_numbers
from dccl_flower.image_config import SplitConf
from dccl_flower.seeds import numpy_generator

REST = "rest"


@dataclass(frozen=True)
class Sides:
    """Indices of the training samples that each side holds, and the classes each stands for."""

    cloud: np.ndarray
    devices: np.ndarray
    cloud_classes: list[int]
    device_classes: list[int]


def numbered(conf: SplitConf, names: Sequence[str]) -> SplitConf:
    """Return the configuration with its classes by number, and what is the rest spelt out.

    Raises ConfError for a class that there is not, and where both sides are the rest.
    """
    keys = ("cloud_classes", "device_classes")
    found: dict[str, Any] = {}
    for key in keys:
        given = getattr(conf, key)
        if given != REST:
            found[key] = class_numbers(f"split.{key}", given, names)
    if conf.by == "classes" and not found:
        raise ConfError("split.cloud_classes=rest: one side must name its classes")
    for key in keys:
        others: list[int] = next(iter(found.values()), [])
        found.setdefault(key, [each for each in range(len(names)) if each not in others])
    return replace(conf, **found)


def subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a stratified random part of the samples, as sorted indices."""
    rows = np.arange(len(labels))
    if fraction >= 1:
        return rows
    draw = numpy_generator(seed, "subset")
    return _of_each_class(labels, rows, lambda size: max(1, round(size * fraction)), draw)


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
    devices hold a random share of every class. With ``groups``, one id a sample, whole groups go to
    one side, by fraction as many as make the devices' share. By classes they are ``count`` of those
    with a device class: device classes and mix are of these, the cloud's samples of all others.
    What then lies on neither side is not used.

    Raises ConfError for a class in both lists or in neither, for a mix that the side it comes from
    cannot serve, and for more devices than there are groups to draw.
    """
    classes = np.unique(labels).tolist()
    if conf.by == "classes":
        _check_classes(conf, classes)
    draw = numpy_generator(seed, "split")
    inside = outside = rows
    if groups is not None:
        drawn = _drawn_groups(labels[rows], groups[rows], conf, seed, count)
        is_inside = np.isin(groups[rows], drawn)
        inside, outside = rows[is_inside], rows[~is_inside]
    elif conf.by == "fraction":
        inside = np.sort(draw.permutation(rows)[: round(len(rows) * conf.device_fraction)])
        outside = np.setdiff1d(rows, inside)
    if conf.by == "fraction":
        return Sides(outside, inside, classes, classes)
    own = inside[np.isin(labels[inside], conf.device_classes)]
    mixed_in = _draw_mix(labels, inside, conf, round(len(own) * conf.mix), draw)
    kept = draw.choice(own, len(own) - len(mixed_in), replace=False)
    cloud = np.setdiff1d(outside[np.isin(labels[outside], conf.cloud_classes)], mixed_in)
    devices = np.sort(np.concatenate([kept, mixed_in]))
    return Sides(cloud, devices, _in_order(conf.cloud_classes), _in_order(conf.device_classes))


def _in_order(classes: Sequence[int | str]) -> list[int]:
    return sorted(cast(Sequence[int], classes))


def hold_out(
    labels: np.ndarray, rows: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (training part, validation part) of ``rows``, stratified by class.

    Every class keeps a training sample. Raises ConfError where none is left to validate on.
    """
    draw = numpy_generator(seed, "validation")
    if not len(rows):
        raise ConfError("split: leaves the cloud no samples")
    validation = _of_each_class(
        labels, rows, lambda size: min(max(1, round(size * share)), size - 1), draw
    )
    if not len(validation):
        raise ConfError(f"data.validation={share}: the cloud has one sample a class, none to spare")
    return np.setdiff1d(rows, validation), validation


def _of_each_class(
    labels: np.ndarray,
    rows: np.ndarray,
    wanted: Callable[[int], int],
    draw: np.random.Generator,
) -> np.ndarray:
    """Return as many of ``rows`` as are wanted of each class's number, at random, sorted."""
    classes = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    parts = [draw.choice(of_class, wanted(len(of_class)), replace=False) for of_class in classes]
    return np.sort(np.concatenate(parts))


def _drawn_groups(
    labels: np.ndarray, groups: np.ndarray, conf: SplitConf, seed: int, count: int
) -> np.ndarray:
    """Return the ids of the groups that make the devices' side, in random order."""
    if conf.by == "classes":
        groups = groups[np.isin(labels, conf.device_classes)]
    found, sizes = np.unique(groups, return_counts=True)
    order = numpy_generator(seed, "groups").permutation(len(found))
    if conf.by == "fraction":
        share = round(len(groups) * conf.device_fraction)
        count = int(np.searchsorted(np.cumsum(sizes[order]), share)) + 1
    elif count > len(found):
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
            needs = f"needs {wanted} samples of class {label}, there are {len(available)}"
            raise ConfError(f"split.mix={conf.mix}: {needs}")
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
    given = f"split.device_classes={conf.device_classes}"
    for label in classes:
        in_cloud, in_devices = label in conf.cloud_classes, label in conf.device_classes
        if in_cloud and in_devices:
            raise ConfError(f"{given}: class {label} is in split.cloud_classes too")
        if not (in_cloud or in_devices):
            raise ConfError(f"{given}: class {label} is in neither list")
