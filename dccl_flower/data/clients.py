"""Samples of clients that are like the devices: of the cloud's own, and of those that score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dccl_flower.data.partition import partition
from dccl_flower.image_config import ImageDevicesConf
from dccl_flower.seeds import numpy_generator


def like_devices(
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    conf: ImageDevicesConf,
    seed: int,
    count_key: str,
) -> list[np.ndarray]:
    """Share the cloud's samples out to clients as different from each other as the devices are.

    By natural id, every id makes a client; in place of draws the parts are independent and
    identically distributed. A client's samples are in random order. Raises ConfError as
    :func:`partition` does.
    """
    if conf.partitioner == "natural" and groups is not None:
        conf = replace(conf, count=len(np.unique(groups[rows])))
    elif conf.partitioner == "draws":
        conf = replace(conf, partitioner="iid")
    shuffled = numpy_generator(seed, "order").permutation(rows)
    return list(partition(shuffled, labels, groups, conf, seed, count_key))


def by_classes_held(labels: np.ndarray, held: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Share samples with ``labels`` (N,) out to devices that train on the labels ``held``.

    A sample goes to the holder of a training sample of its class, drawn at random: so to a device
    in proportion to how many of them it holds, and to nobody where none holds one. Returns indices
    into ``labels`` a device, in random order; a device may get none. All that the devices hold is
    sorted once by class, which takes no memory for each pair of device and class.
    """
    draw = numpy_generator(seed, "test clients")
    ends, classes = np.cumsum([len(of_device) for of_device in held]), np.concatenate(held)
    by_class = np.argsort(classes, kind="stable")
    first, last = (np.searchsorted(classes, labels, side, by_class) for side in ("left", "right"))
    shared = draw.permutation(np.flatnonzero(first < last))
    drawn = by_class[draw.integers(first[shared], last[shared])]
    receivers = np.searchsorted(ends, drawn, "right")
    order = np.argsort(receivers, kind="stable")
    return np.split(shared[order], np.searchsorted(receivers[order], np.arange(1, len(held))))
