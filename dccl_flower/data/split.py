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


def split_sides(labels: np.ndarray, rows: np.ndarray, conf: SplitConf, seed: int) -> Sides:
    """Share the samples ``rows`` out to the cloud and to the devices.

    By classes: the devices hold the device classes, and a share ``mix`` of their samples is
    replaced by cloud-class samples in equal numbers, which leave the cloud. By fraction: the
    devices hold a random share of every class. Raises ConfError for a class in both lists or in
    neither, and for a mix that the cloud cannot serve.
    """
    classes = np.unique(labels).tolist()
    draw = numpy_generator(seed, "split")
    if conf.by == "fraction":
        chosen = draw.permutation(rows)[: round(len(rows) * conf.device_fraction)]
        return Sides(np.setdiff1d(rows, chosen), np.sort(chosen), classes, classes)
    _check_classes(conf, classes)
    own = rows[np.isin(labels[rows], conf.device_classes)]
    mixed_in = _draw_mix(labels, rows, conf, round(len(own) * conf.mix), draw)
    kept = draw.choice(own, len(own) - len(mixed_in), replace=False)
    cloud = rows[np.isin(labels[rows], conf.cloud_classes)]
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
