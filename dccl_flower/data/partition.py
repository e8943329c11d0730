"""Share samples out to devices, or to clients like them, by flwr-datasets' partitioners."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dccl_flower.config import ConfError
from dccl_flower.image_config import ImageDevicesConf
from dccl_flower.seeds import derive_seed, numpy_generator

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


@dataclass(frozen=True)
class Draws(Sequence[np.ndarray]):
    """Sample indices of devices, ``samples`` each, drawn from ``rows`` when asked for.

    Drawn with replacement, so that there may be any number of devices.
    """

    rows: np.ndarray
    num_devices: int
    samples: int
    seed: int

    def __len__(self) -> int:
        return self.num_devices

    def __getitem__(self, device: Any) -> Any:
        if isinstance(device, slice):
            return [self[each] for each in range(self.num_devices)[device]]
        if not 0 <= device < self.num_devices:
            raise IndexError(f"device {device}: there are {self.num_devices}")
        return numpy_generator(self.seed, "draws", device).choice(self.rows, self.samples)


def partition(
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    conf: ImageDevicesConf,
    seed: int,
    count_key: str = "devices.count",
) -> Sequence[np.ndarray]:
    """Return the sample indices of each device; every device gets at least one.

    By natural id, ``conf.count`` ids are drawn to make devices, each with all of its samples among
    ``rows``; those of other ids are not used.

    Raises ConfError, which blames ``count_key``, where there are more devices than samples or
    natural ids, or where the partitioner cannot serve them all.
    """
    if conf.partitioner == "draws":
        return Draws(rows, conf.count, conf.samples, seed)
    if conf.count > len(rows):
        raise ConfError(f"{count_key}={conf.count}: there are only {len(rows)} samples to share")
    if conf.partitioner == "natural":
        return _by_group(rows, groups, conf.count, seed, count_key)
    parts = _by_label(rows, labels, conf, seed, count_key)
    return parts if conf.heterogeneity == 1 else _mixed(parts, conf.heterogeneity, seed)


def _by_group(
    rows: np.ndarray, groups: np.ndarray | None, count: int, seed: int, count_key: str
) -> list[np.ndarray]:
    if groups is None:
        raise ConfError("devices.partitioner=natural: needs data.group_column")
    found, sizes = np.unique(groups[rows], return_counts=True)
    if count > len(found):
        raise ConfError(f"{count_key}={count}: the devices' data have {len(found)} ids")
    parts = np.split(rows[np.argsort(groups[rows], kind="stable")], np.cumsum(sizes)[:-1])
    drawn = numpy_generator(seed, "natural").permutation(len(found))[:count]
    return [parts[place] for place in drawn]


def _by_label(
    rows: np.ndarray, labels: np.ndarray, conf: ImageDevicesConf, seed: int, count_key: str
) -> list[np.ndarray]:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    order = numpy_generator(seed, "partition").permutation(rows)
    columns = {"row": order, "label": labels[order]}
    partitioner = _partitioner(conf, derive_seed(seed, "partitioner") % 2**32)
    partitioner.dataset = Dataset.from_dict(columns)
    given, wanted = f"devices.partitioner={conf.partitioner}", f"{count_key}={conf.count}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its retries; what they end in is said below
            parts = [partitioner.load_partition(d) for d in range(conf.count)]
    except ValueError as error:
        cause = " ".join(str(error).split())
        raise ConfError(f"{given}: cannot serve {wanted} ({cause})") from error
    indices = [np.asarray(part["row"], dtype=np.int64) for part in parts]
    if empty := [place for place, part in enumerate(indices) if not len(part)]:
        raise ConfError(
            f"{given}: number {empty[0]} of {wanted} gets no sample; use fewer or a more even "
            "partition"
        )
    return indices


def _mixed(parts: list[np.ndarray], kept: float, seed: int) -> list[np.ndarray]:
    """Return parts of the same sizes that keep a share and draw the rest from the pool of all."""
    draw = numpy_generator(seed, "heterogeneity")
    cut = [np.split(draw.permutation(part), [round(len(part) * kept)]) for part in parts]
    pool = draw.permutation(np.concatenate([given for _, given in cut]))
    dealt = np.split(pool, np.cumsum([len(given) for _, given in cut])[:-1])
    pairs = [(own, new) for (own, _), new in zip(cut, dealt, strict=True)]
    return [draw.permutation(np.concatenate(pair)) for pair in pairs]


def _partitioner(conf: ImageDevicesConf, seed: int) -> Partitioner:
    from flwr_datasets import partitioner as library

    if conf.partitioner == "iid":
        return library.IidPartitioner(conf.count)
    if conf.partitioner == "dirichlet":
        return library.DirichletPartitioner(
            conf.count, "label", alpha=conf.alpha, min_partition_size=1, seed=seed
        )
    classes, mode = conf.classes_per_device, "deterministic"
    return library.PathologicalPartitioner(conf.count, "label", classes, mode, seed=seed)
