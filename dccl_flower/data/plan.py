"""Who holds which samples: computed once, kept beside the decoded images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dccl_flower.cache import cache_entry
from dccl_flower.data.images import Images
from dccl_flower.data.partition import Draws, partition
from dccl_flower.data.split import hold_out, numbered, split_sides, subset
from dccl_flower.files import content_key, naming
from dccl_flower.image_config import ImageConf

FORMAT = 2  # to be raised when the same configuration gives another plan
STATISTICS_BATCH = 2000


@dataclass(frozen=True)
class Plan:
    """Index arrays into the training images, and the cloud's pixel mean and deviation (C,)."""

    cloud: np.ndarray
    validation: np.ndarray
    devices: Sequence[np.ndarray]
    cloud_classes: list[int]
    device_classes: list[int]
    mean: np.ndarray
    std: np.ndarray

    def device_rows(self) -> np.ndarray:
        """Return what the devices hold together, drawn or not."""
        if isinstance(self.devices, Draws):
            return self.devices.rows
        return np.concatenate(self.devices)


def open_plan(conf: ImageConf, images: Images) -> Plan:
    """Read the plan of a configuration, computing it first where no process has done so yet.

    Raises ConfError where the split or the partition is impossible.
    """
    devices = conf.devices
    facts = [FORMAT, version("flwr-datasets"), images.key, conf.seed, asdict(conf.split)]
    facts += [devices.count, devices.partitioner, devices.alpha, devices.classes_per_device]
    facts += [conf.data.train_fraction, conf.data.validation]
    if devices.partitioner == "draws":
        facts.append(devices.samples)
    if devices.heterogeneity != 1:
        facts.append(devices.heterogeneity)
    name = f"plan-{content_key(*facts)}"
    return _read(cache_entry(name, lambda target: _write(make_plan(conf, images), target)), conf)


def make_plan(conf: ImageConf, images: Images) -> Plan:
    """Split the training images into cloud, validation and one part a device."""
    labels = np.asarray(images.train_labels)
    split = numbered(conf.split, images.class_names)
    rows = subset(labels, conf.data.train_fraction, conf.seed)
    groups = images.groups if conf.devices.partitioner == "natural" else None
    sides = split_sides(labels, rows, split, conf.seed, groups, conf.devices.count)
    devices = partition(sides.devices, labels, groups, conf.devices, conf.seed)
    cloud, validation = hold_out(labels, sides.cloud, conf.data.validation, conf.seed)
    mean, std = _pixel_statistics(images.train, cloud)
    return Plan(cloud, validation, devices, sides.cloud_classes, sides.device_classes, mean, std)


def _pixel_statistics(images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation a channel of the cloud's pixels, in units of 0..1."""
    total, squares, count = 0.0, 0.0, 0
    for start in range(0, len(rows), STATISTICS_BATCH):
        batch = images[rows[start : start + STATISTICS_BATCH]].astype(np.float64) / 255
        total = total + batch.sum(axis=(0, 1, 2))
        squares = squares + (batch**2).sum(axis=(0, 1, 2))
        count += batch[..., 0].size
    mean = np.asarray(total) / count
    std = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 1e-6))
    return mean.astype(np.float32), std.astype(np.float32)


def _write(plan: Plan, folder: Path) -> None:
    drawn, path = isinstance(plan.devices, Draws), folder / "plan.npz"
    with naming(path):
        np.savez(
            path,
            device_rows=plan.device_rows(),
            device_ends=[] if drawn else np.cumsum([len(rows) for rows in plan.devices]),
            **{name: value for name, value in vars(plan).items() if name != "devices"},
        )


def _read(folder: Path, conf: ImageConf) -> Plan:
    with np.load(folder / "plan.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    devices: Sequence[np.ndarray]
    rows, ends = arrays.pop("device_rows"), arrays.pop("device_ends")
    if conf.devices.partitioner == "draws":
        devices = Draws(rows, conf.devices.count, conf.devices.samples, conf.seed)
    else:
        devices = np.split(rows, ends[:-1])
    classes = {name: arrays.pop(name).tolist() for name in ("cloud_classes", "device_classes")}
    return Plan(devices=devices, **arrays, **classes)
