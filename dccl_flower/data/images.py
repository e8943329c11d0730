"""Images as uint8 memory-maps: decoded once, shared by all processes of a machine."""

from __future__ import annotations

import glob
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dccl_flower.cache import cache_entry
from dccl_flower.config import ConfError
from dccl_flower.data.decode import first_line, pixels_of, resized
from dccl_flower.data.labels import class_names, column_of, labels_of
from dccl_flower.data.layout import SPLITS, data_files, is_parquet
from dccl_flower.files import content_key, naming, write_array, write_json
from dccl_flower.image_config import ImageDataConf

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

CLASSES_FILE = "classes.json"
ARRAYS = ("train", "test", "train_labels", "test_labels")
FORMAT = 3  # to be raised when the same data decode to something else
CURE = "bring them together with data.image_size, and data.rgb=true where channels differ"
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
    groups: np.ndarray | None = None
    names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, counted over train and test labels."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @property
    def class_names(self) -> list[str]:
        """What the data call each class; its number where they do not say."""
        numbers = [str(label) for label in range(self.num_classes)]
        return [*self.names[: len(numbers)], *numbers[len(self.names) :]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image as models take it: (C, H, W)."""
        height, width, channels = self.train.shape[1:]
        return channels, height, width


def open_images(conf: ImageDataConf) -> Images:
    """Memory-map a data set, decoding it first where no process has done so yet.

    Raises ConfError for a path without parquet, missing columns or images of unequal size.
    """
    key = _images_key(conf)
    decode = _decode if conf.path else BUILT_IN.get(conf.name, _decode)
    if decode is not _decode and conf.test_share > 0:
        raise ConfError(f"data.test_share={conf.test_share}: {conf.name} has a test set of its own")
    folder = cache_entry(key, lambda target: decode(conf, target))
    arrays = {file.stem: np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}
    told = folder / CLASSES_FILE
    names = json.loads(told.read_text()) if told.exists() else []
    return Images(key, names=tuple(names), **arrays)


# Shape (C, H, W) of an image, and number of classes.
KNOWN_SETS = {
    "digits": ((1, 8, 8), 10),
    "noise": ((3, 32, 32), NOISE_CLASSES),
    "uoft-cs/cifar10": ((3, 32, 32), 10),
    "ylecun/mnist": ((1, 28, 28), 10),
    "zalando-datasets/fashion_mnist": ((1, 28, 28), 10),
}


def known_shape(conf: ImageDataConf) -> tuple[tuple[int, int, int], int] | None:
    """Return an image's shape (C, H, W) and the number of classes, where they need no data.

    That is the case for the sets of :data:`KNOWN_SETS` by their own names.
    """
    if conf.path is not None or conf.name not in KNOWN_SETS:
        return None
    (channels, height, width), classes = KNOWN_SETS[conf.name]
    if size := image_size(conf):
        height = width = size
    return (3 if conf.rgb else channels, height, width), classes


def image_size(conf: ImageDataConf) -> int | None:
    """Return the side that images are brought to; None where they stay as they are."""
    assert conf.image_size != "model", "the size of a model's own images is not known here"
    return conf.image_size


def _images_key(conf: ImageDataConf) -> str:
    """Hash what decides the decoded content; local files count by name, size and time."""
    columns = (conf.image_column, conf.label_column, conf.group_column)
    facts: list[Any] = [FORMAT, conf.name, *columns, conf.rgb, conf.test_split, conf.test_share]
    facts.append(image_size(conf))
    for files in data_files(conf.path, _wanted(conf)).values() if conf.path else []:
        facts += [(f, os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files]
    return f"images-{content_key(*facts)}"


def _decode(conf: ImageDataConf, folder: Path) -> None:
    splits = _load_splits(conf)
    names = class_names(splits, conf.label_column)
    if names:
        write_json(folder / CLASSES_FILE, names)
    shape: tuple[int, ...] = ()
    for split in SPLITS:
        labels = labels_of(splits[split], conf.label_column, names)
        write_array(folder / f"{split}_labels.npy", labels)
        shape = _decode_split(conf, splits[split], folder, split, shape)
    if conf.group_column is not None:
        write_array(folder / "groups.npy", _group_codes(splits["train"], conf.group_column))


def _load_splits(conf: ImageDataConf) -> DatasetDict:
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()
    key = f"data.path={conf.path}" if conf.path else f"data.name={conf.name}"
    try:
        if conf.path:
            files = data_files(conf.path, _wanted(conf))
            kind = "parquet" if is_parquet(files) else "imagefolder"
            splits = load_dataset(kind, data_files=_filled_files(conf.path, files))
        else:
            splits = load_dataset(conf.name)
            if conf.test_split in splits and conf.test_share == 0:
                splits["test"] = splits[conf.test_split]
    except ConfError:
        raise
    except Exception as error:  # hub client and readers raise many kinds
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        raise ConfError(f"{key}: cannot be loaded ({first_line(cause or error)})") from error
    if conf.test_share > 0 and "train" in splits:
        splits = splits["train"].train_test_split(conf.test_share, seed=0)
    for split in SPLITS:
        if split not in splits:
            cure = "; name one as data.test_split, or hold a part out with data.test_share=0.2"
            raise ConfError(f"{key}: has no split {split!r}, only {', '.join(splits)}{cure}")
        if not len(splits[split]):
            raise ConfError(f"{key}: the split {split!r} is empty")
        columns = ("image_column", "label_column", "group_column")
        for column in columns if split == "train" else columns[:2]:
            name, there = getattr(conf, column), splits[split].column_names
            if name is not None and name not in there:
                raise ConfError(f"data.{column}={name}: the data have columns {', '.join(there)}")
    return splits


def _wanted(conf: ImageDataConf) -> dict[str, str]:
    """Return which of the splits that there are is the training set, and which the test set."""
    return {"train": "train"} | ({} if conf.test_share > 0 else {"test": conf.test_split})


def _filled_files(path: str, by_split: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the files of each split that hold rows, as patterns that stand for themselves."""
    from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]

    found, parquet = {}, is_parquet(by_split)
    for split, files in by_split.items():
        filled = [file for file in files if not parquet or read_metadata(file).num_rows]
        found[split] = [glob.escape(file) for file in filled]
        if not found[split]:
            raise ConfError(f"data.path={path}: the split {split!r} is empty")
    return found


def _decode_split(
    conf: ImageDataConf, rows: Dataset, folder: Path, split: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Write the pixels of images of one shape, that of the first where none is given; return it."""
    from datasets import ClassLabel, Image, Value

    column = conf.image_column
    if isinstance(rows.features[column], Image | Value | ClassLabel | dict):  # no array
        try:
            rows = rows.cast_column(column, Image(decode=False))
        except Exception as error:  # what a column cannot be cast from differs by its type
            cause = first_line(error)
            raise ConfError(f"data.image_column={column}: holds no images ({cause})") from error
    # Not through a memory-map: there a full disk kills the process.
    path = folder / f"{split}.npy"
    with naming(path), path.open("wb") as file:
        for row, sample in enumerate(rows.select_columns([column])):
            try:
                pixels = pixels_of(sample[column], conf.rgb, image_size(conf))
                shape = shape or pixels.shape
                if pixels.shape != shape:
                    raise ValueError(f"is {pixels.shape}, others have {shape}; {CURE}")
            except ValueError as error:
                blamed = f"data.image_column={column}: row {row} of {split}"
                raise ConfError(f"{blamed} {error}") from error
            if row == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(pixels.tobytes())
    return shape


def _group_codes(rows: Dataset, column: str) -> np.ndarray:
    """Return the groups (N,) as int64 from 0, in the order of their names."""
    groups = column_of(rows, column)
    if groups.ndim != 1 or any(group is None or group != group for group in groups.tolist()):
        raise ConfError(f"data.group_column={column}: must name one group for each image")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _decode_digits(conf: ImageDataConf, folder: Path) -> None:
    """Write scikit-learn's bundled digits, split once and for all seeds alike."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    pixels = np.repeat(pixels, 3, axis=3) if conf.rgb else pixels
    pixels = _all_resized(pixels, conf)
    labels = digits.target.astype(np.int64)
    parts = train_test_split(
        pixels, labels, test_size=DIGITS_TEST_SHARE, random_state=0, stratify=labels
    )
    for name, part in zip(ARRAYS, parts, strict=True):
        write_array(folder / f"{name}.npy", part)


def _write_noise(conf: ImageDataConf, folder: Path) -> None:
    """Write images without content, of CIFAR-10's shape: for timing, which pixels do not change."""
    draw = np.random.default_rng(0)
    for split, size in NOISE_SIZES.items():
        pixels = draw.integers(0, 256, (size, *NOISE_SHAPE), np.uint8)
        write_array(folder / f"{split}.npy", _all_resized(pixels, conf))
        write_array(folder / f"{split}_labels.npy", np.arange(size) % NOISE_CLASSES)


def _all_resized(pixels: np.ndarray, conf: ImageDataConf) -> np.ndarray:
    size = image_size(conf)
    return pixels if size is None else np.stack([resized(each, size) for each in pixels])


BUILT_IN = {"digits": _decode_digits, "noise": _write_noise}
