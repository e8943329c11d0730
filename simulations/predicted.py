"""``dccl predict``: the classes of images by a finished run's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError

from dccl_flower.config import ConfError
from dccl_flower.simulations.figures import save_figure
from dccl_flower.simulations.trained import Trained, load_run

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
COLUMNS = 4


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, by name with their probability, the likeliest first."""

    image: Path
    pixels: np.ndarray
    classes: list[tuple[str, float]]


def predict_images(
    folder: Path, images: Sequence[Path], model: str = "served", top: int = 3
) -> list[Prediction]:
    """Return what a finished run's model says of images, brought to the size that it takes.

    Raises ConfError for a folder without such a run, a model that it has not, and for a file that
    is no image.
    """
    trained = load_run(folder)
    if model not in trained.modules:
        raise ConfError(f"--model {model}: {folder} has {', '.join(trained.modules)}")
    pixels = [read_image(path, trained) for path in images]
    batch = torch.stack([torch.from_numpy(each).permute(2, 0, 1).float() / 255 for each in pixels])
    with torch.inference_mode():
        shares = trained.modules[model](batch).softmax(dim=1)
    found = []
    for path, image, row in zip(images, pixels, shares, strict=True):
        values, classes = row.topk(min(top, trained.num_classes))
        named = [trained.class_names[each] for each in classes.tolist()]
        found.append(Prediction(path, image, list(zip(named, values.tolist(), strict=True))))
    return found


def read_image(path: Path, trained: Trained) -> np.ndarray:
    """Return the middle of an image (H, W, C) uint8 in the shape of a run.

    Raises ConfError for no image.
    """
    channels, height, width = trained.shape
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert(MODES[channels])
            brought = ImageOps.fit(upright, (width, height))
    except UnidentifiedImageError as error:
        raise ConfError(f"{path}: is no image") from error
    except OSError as error:
        raise ConfError(f"{path}: {error.strerror or error}") from error
    return np.atleast_3d(np.asarray(brought))


def draw_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """Draw the images, each under its likeliest class, as a picture."""
    rows = -(-len(predictions) // COLUMNS)
    figure = Figure(figsize=(2.4 * min(COLUMNS, len(predictions)), 2.7 * rows))
    for place, each in enumerate(predictions):
        axes = figure.add_subplot(rows, min(COLUMNS, len(predictions)), place + 1)
        axes.imshow(each.pixels, cmap="gray" if each.pixels.shape[2] == 1 else None)
        name, share = each.classes[0]
        axes.set_title(f"{name} {share:.0%}", fontsize=10)
        axes.set_axis_off()
    figure.tight_layout()
    save_figure(figure, path)
