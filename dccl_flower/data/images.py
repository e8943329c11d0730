"""Images as uint8 memory-maps: decoded once, shared by all processes of a machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dccl_flower.config import ConfError, DataConf
from dccl_flower.files import content_key, write_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ARRAYS = ("train", "train_labels", "test", "test_labels")
FORMAT = 1  # to be raised when the same data decode to something else
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
    for files in _parquet_files(conf.path).values() if conf.path else []:
        facts += [(f, os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files]
    return f"images-{content_key(*facts)}"


def _parquet_files(path: str) -> dict[str, list[str]]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfError(f"data.path={path}: no such folder")
    files = {}
    for split in ("train", "test"):
        files[split] = sorted(map(str, folder.resolve().rglob(f"{split}*.parquet")))
        if not files[split]:
            raise ConfError(f"data.path={path}: holds no {split}*.parquet")
    return files


def _decode(conf: DataConf, folder: Path) -> None:
    if conf.name in BUILT_IN and not conf.path:
        return BUILT_IN[conf.name](conf, folder)
    splits = _load_splits(conf)
    for split in ("train", "test"):
        _decode_split(conf, splits[split], folder, split)
    _check_same_shape(folder, f"data.image_column={conf.image_column}")
    if conf.group_column is not None:
        _, codes = np.unique(np.asarray(splits["train"][conf.group_column]), return_inverse=True)
        np.save(folder / "groups.npy", codes.astype(np.int64))
    return None


def _load_splits(conf: DataConf) -> DatasetDict:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    key = f"data.path={conf.path}" if conf.path else f"data.name={conf.name}"
    try:
        if conf.path:
            splits = load_dataset("parquet", data_files=_parquet_files(conf.path))
        else:
            splits = load_dataset(conf.name)
    except ConfError:
        raise
    except Exception as error:  # hub client and readers raise many kinds
        cause = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ConfError(f"{key}: cannot be loaded ({cause})") from error
    for split in ("train", "test"):
        if split not in splits:
            raise ConfError(f"{key}: has no split {split!r}, only {', '.join(splits)}")
    columns = splits["train"].column_names
    for key in ("image_column", "label_column", "group_column"):
        name = getattr(conf, key)
        if name is not None and name not in columns:
            raise ConfError(f"data.{key}={name}: the data have columns {', '.join(columns)}")
    return splits


def _decode_split(conf: DataConf, rows: Dataset, folder: Path, split: str) -> None:
    from datasets import Image

    mode = "RGB" if conf.rgb else None
    column = f"data.image_column={conf.image_column}"
    try:
        rows = rows.cast_column(conf.image_column, Image(mode=mode))
        first = _as_array(rows[0][conf.image_column])
    except (NotImplementedError, TypeError, ValueError, OSError) as error:
        raise ConfError(f"{column}: holds no images") from error
    target = np.lib.format.open_memmap(
        folder / f"{split}.npy", mode="w+", dtype=np.uint8, shape=(len(rows), *first.shape)
    )
    for start in range(0, len(rows), DECODE_BATCH):
        try:
            batch = rows[start : start + DECODE_BATCH][conf.image_column]
        except OSError as error:
            where = f"rows {start} to {start + DECODE_BATCH - 1}"
            raise ConfError(f"{column}: {where} hold a damaged image") from error
        for offset, image in enumerate(batch):
            array = _as_array(image)
            if array.shape != first.shape:
                row = start + offset
                shapes = f"{array.shape}, others have {first.shape}"
                raise ConfError(f"{column}: row {row} is {shapes}")
            target[start + offset] = array
    target.flush()
    labels = np.asarray(rows[conf.label_column])
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ConfError(f"data.label_column={conf.label_column}: labels must be integers from 0")
    np.save(folder / f"{split}_labels.npy", labels.astype(np.int64))


def _check_same_shape(folder: Path, column: str) -> None:
    shapes = [np.load(folder / f"{s}.npy", mmap_mode="r").shape[1:] for s in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise ConfError(f"{column}: train images are {shapes[0]}, test images {shapes[1]}")


def _as_array(image: Any) -> np.ndarray:
    """Return (H, W, C) uint8. Raises ConfError for what is no image of 8 bits a channel."""
    if getattr(image, "mode", None) not in ("L", "RGB", "RGBA"):
        raise ConfError(
            f"data.image_column: an image of mode {getattr(image, 'mode', None)}; allowed are L, "
            "RGB and RGBA, and any with data.rgb=true"
        )
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


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
