"""Share the device samples out to devices, by flwr-datasets' partitioners."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dccl_flower.config import ConfError, DevicesConf
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
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, conf: DevicesConf, seed: int
) -> Sequence[np.ndarray]:
    """Return the sample indices of each device; every device gets at least one.

    By natural id, ``conf.count`` ids are drawn to make devices, each with all of its samples among
    ``rows``; those of other ids are not used.

    Raises ConfError where there are more devices than samples or natural ids, or where the
    partitioner cannot serve them all.
    """
    if conf.partitioner == "draws":
        return Draws(rows, conf.count, conf.samples, seed)
    if conf.count > len(rows):
        raise ConfError(f"devices.count={conf.count}: there are only {len(rows)} device samples")
    if conf.partitioner == "natural":
        if groups is None:
            raise ConfError("devices.partitioner=natural: needs data.group_column")
        return _by_group(rows, groups, conf.count, seed)
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    order = numpy_generator(seed, "partition").permutation(rows)
    columns = {"row": order, "label": labels[order]}
    partitioner = _partitioner(conf, derive_seed(seed, "partitioner") % 2**32)
    partitioner.dataset = Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its retries; what they end in is said below
            parts = [partitioner.load_partition(d) for d in range(conf.count)]
    except ValueError as error:
        cause = " ".join(str(error).split())
        raise ConfError(f"devices.partitioner={conf.partitioner}: {cause}") from error
    indices = [np.asarray(part["row"], dtype=np.int64) for part in parts]
    if empty := [device for device, rows in enumerate(indices) if not len(rows)]:
        raise ConfError(
            f"devices.partitioner={conf.partitioner}: device {empty[0]} of {conf.count} gets no "
            "sample; use fewer devices or a more even partition"
        )
    return indices


def _by_group(rows: np.ndarray, groups: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    found = np.unique(groups[rows])
    if count > len(found):
        raise ConfError(f"devices.count={count}: the devices' data have {len(found)} ids")
    drawn = numpy_generator(seed, "natural").permutation(found)[:count]
    return [rows[groups[rows] == group] for group in drawn]


def _partitioner(conf: DevicesConf, seed: int) -> Partitioner:
    from flwr_datasets import partitioner as library

    if conf.partitioner == "iid":
        return library.IidPartitioner(conf.count)
    if conf.partitioner == "dirichlet":
        return library.DirichletPartitioner(
            conf.count, "label", alpha=conf.alpha, min_partition_size=1, seed=seed
        )
    classes, mode = conf.classes_per_device, "deterministic"
    return library.PathologicalPartitioner(conf.count, "label", classes, mode, seed=seed)
