"""Images as uint8 memory-maps: decoded once, shared by all processes of a machine."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dccl_flower.config import ConfError, DataConf
from dccl_flower.data.layout import SPLITS, parquet_files
from dccl_flower.files import content_key, write_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ARRAYS = ("train", "train_labels", "test", "test_labels")
FORMAT = 2  # to be raised when the same data decode to something else
DECODE_BATCH = 1000
DIGITS_TEST_SHARE = 0.25
NOISE_SHAPE, NOISE_CLASSES = (32, 32, 3), 10
NOISE_SIZES = {"train": 4000, "test": 20}


@dataclass(frozen=True)
class Images:
    """Images (N, H, W, C) uint8 with labels (N,) int64; ``key`` names the content."""

    key: str
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    groups: np.ndarray | None

    @property
    def num_classes(self) -> int:
        """Number of classes, counted over train and test labels."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image as models take it: (C, H, W)."""
        height, width, channels = self.train.shape[1:]
        return channels, height, width


def cache_root() -> Path:
    """Return the folder for decoded images: ``DCCL_CACHE``, else one below ``XDG_CACHE_HOME``."""
    if explicit := os.environ.get("DCCL_CACHE"):
        return Path(explicit).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dccl-flower"


def open_images(conf: DataConf) -> Images:
    """Memory-map a data set, decoding it first where no process has done so yet.

    Raises ConfError for a path without parquet, missing columns or images of unequal size.
    """
    key = _images_key(conf)
    folder = cache_root() / key
    if not (folder / "test_labels.npy").exists():
        write_folder(folder, lambda target: _decode(conf, target))
    groups = folder / "groups.npy"
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return Images(
        key=key, groups=np.load(groups, mmap_mode="r") if groups.exists() else None, **arrays
    )


def _images_key(conf: DataConf) -> str:
    """Hash what decides the decoded content; local files count by name, size and time."""
    facts: list[Any] = [FORMAT, conf.name, conf.image_column, conf.label_column, conf.group_column]
    facts.append(conf.rgb)
    for files in parquet_files(conf.path).values() if conf.path else []:
        facts += [(f, os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files]
    return f"images-{content_key(*facts)}"


def _decode(conf: DataConf, folder: Path) -> None:
    if conf.name in BUILT_IN and not conf.path:
        return BUILT_IN[conf.name](conf, folder)
    splits = _load_splits(conf)
    for split in SPLITS:
        _decode_split(conf, splits[split], folder, split)
    _check_same_shape(folder, f"data.image_column={conf.image_column}")
    if conf.group_column is not None:
        np.save(folder / "groups.npy", _group_codes(splits["train"], conf.group_column))
    return None


def _group_codes(rows: Dataset, column: str) -> np.ndarray:
    """Return the groups (N,) as int64 from 0, in the order of their names."""
    groups = _column(rows, column)
    if groups.ndim != 1 or any(group is None or group != group for group in groups.tolist()):
        raise ConfError(f"data.group_column={column}: must name one group for each image")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _load_splits(conf: DataConf) -> DatasetDict:
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()
    key = f"data.path={conf.path}" if conf.path else f"data.name={conf.name}"
    try:
        if conf.path:
            splits = load_dataset("parquet", data_files=_filled_files(conf.path))
        else:
            splits = load_dataset(conf.name)
    except ConfError:
        raise
    except Exception as error:  # hub client and readers raise many kinds
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        raise ConfError(f"{key}: cannot be loaded ({_first_line(cause or error)})") from error
    for split in SPLITS:
        if split not in splits:
            raise ConfError(f"{key}: has no split {split!r}, only {', '.join(splits)}")
        if not len(splits[split]):
            raise ConfError(f"{key}: the split {split!r} is empty")
        _check_columns(conf, splits[split].column_names, with_groups=split == "train")
    return splits


def _filled_files(path: str) -> dict[str, list[str]]:
    """Return the files of each split that hold rows, as patterns that stand for themselves."""
    from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]

    found = {}
    for split, files in parquet_files(path).items():
        found[split] = [glob.escape(file) for file in files if read_metadata(file).num_rows]
        if not found[split]:
            raise ConfError(f"data.path={path}: the split {split!r} is empty")
    return found


def _check_columns(conf: DataConf, columns: list[str], with_groups: bool) -> None:
    for key in ("image_column", "label_column", "group_column")[: 3 if with_groups else 2]:
        name = getattr(conf, key)
        if name is not None and name not in columns:
            raise ConfError(f"data.{key}={name}: the data have columns {', '.join(columns)}")


def _decode_split(conf: DataConf, rows: Dataset, folder: Path, split: str) -> None:
    from datasets import Image

    column = f"data.image_column={conf.image_column}"
    labels = _labels(rows, conf.label_column)
    is_array = isinstance(rows[0][conf.image_column], list)
    try:
        pictures = rows if is_array else rows.cast_column(conf.image_column, Image())
    except Exception as error:  # what a column cannot be cast from differs by its type
        raise ConfError(f"{column}: holds no images ({_first_line(error)})") from error
    target: np.ndarray | None = None
    for start in range(0, len(rows), DECODE_BATCH):
        try:
            batch = pictures[start : start + DECODE_BATCH][conf.image_column]
        except Exception as error:  # Pillow's decoders raise many kinds
            last = min(start + DECODE_BATCH, len(rows)) - 1
            where = f"rows {start} to {last} of {split} hold a damaged image"
            raise ConfError(f"{column}: {where} ({_first_line(error)})") from error
        for row, image in enumerate(batch, start):
            where = f"{column}: row {row} of {split}"
            image = _from_array(image, where) if is_array else image
            array = _as_array(image, conf.rgb, where)
            if target is None:
                shape = (len(rows), *array.shape)
                path = folder / f"{split}.npy"
                target = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            if array.shape != target.shape[1:]:
                shapes = f"{array.shape}, others have {target.shape[1:]}"
                raise ConfError(f"{column}: row {row} is {shapes}")
            target[row] = array
    np.save(folder / f"{split}_labels.npy", labels)


def _labels(rows: Dataset, column: str) -> np.ndarray:
    """Return the labels (N,) int64 of a column of integers, or of lists of one integer."""
    labels = _column(rows, column)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    key = f"data.label_column={column}"
    if labels.ndim != 1:
        raise ConfError(f"{key}: must hold one label for each image, not {labels.shape[1:]}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ConfError(f"{key}: labels must be integers from 0")
    return labels.astype(np.int64)


def _column(rows: Dataset, column: str) -> np.ndarray:
    """Return a column as an array; rows of unequal length are as good as None."""
    values = rows[column][:]
    try:
        return np.asarray(values)
    except ValueError:
        return np.asarray([None])


def _check_same_shape(folder: Path, column: str) -> None:
    shapes = [np.load(folder / f"{s}.npy", mmap_mode="r").shape[1:] for s in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise ConfError(f"{column}: train images are {shapes[0]}, test images {shapes[1]}")


def _from_array(values: Any, where: str) -> Any:
    """Return lists of pixels as an image. Raises ConfError where they are no bytes."""
    from PIL import Image

    try:
        pixels = np.asarray(values)
        is_bytes = pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 255
        if not is_bytes or pixels.ndim not in (2, 3):
            raise ValueError
        pixels = pixels.astype(np.uint8)
        return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    except (TypeError, ValueError) as error:
        expected = "expected integers from 0 to 255, (H, W) or (H, W, C)"
        raise ConfError(f"{where} holds an array that is no image; {expected}") from error


def _as_array(image: Any, rgb: bool, where: str) -> np.ndarray:
    """Return (H, W, C) uint8. Raises ConfError for what is no image of 8 bits a channel."""
    mode = getattr(image, "mode", None)
    if mode is None:
        raise ConfError(f"{where} holds no image")
    if mode.startswith(("I", "F")):  # which Pillow would clip to white
        raise ConfError(f"{where} has mode {mode}, 16 or 32 bits a channel; scale it to 8 bits")
    if rgb:
        try:
            image = image.convert("RGB")
        except ValueError as error:
            raise ConfError(f"{where} has mode {mode}: {_first_line(error)}") from error
    elif mode not in ("L", "RGB", "RGBA"):
        allowed = "allowed are L, RGB and RGBA, and others with data.rgb=true"
        raise ConfError(f"{where} has mode {mode}; {allowed}")
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _decode_digits(conf: DataConf, folder: Path) -> None:
    """Write scikit-learn's bundled digits, split once and for all seeds alike."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    pixels = np.repeat(pixels, 3, axis=3) if conf.rgb else pixels
    train, test = train_test_split(
        np.arange(len(pixels)),
        test_size=DIGITS_TEST_SHARE,
        random_state=0,
        stratify=digits.target,
    )
    for split, rows in (("train", train), ("test", test)):
        np.save(folder / f"{split}.npy", pixels[rows])
        np.save(folder / f"{split}_labels.npy", digits.target[rows].astype(np.int64))


def _write_noise(conf: DataConf, folder: Path) -> None:
    """Write images without content, of CIFAR-10's shape: for timing, which pixels do not change."""
    draw = np.random.default_rng(0)
    for split, size in NOISE_SIZES.items():
        np.save(folder / f"{split}.npy", draw.integers(0, 256, (size, *NOISE_SHAPE), np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(size) % NOISE_CLASSES)


BUILT_IN = {"digits": _decode_digits, "noise": _write_noise}
