"""What a finished run's models say of the images that only score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.models.served import ServedModel
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.trained import load_run

BATCH = 500
MOST_SHOWN = 24


@dataclass(frozen=True)
class Judged:
    """Test images (N, H, W, C) uint8, their labels, and the classes that models give them.

    ``alone`` is the cloud submodel's, where one is part of what serves; ``sides`` the classes that
    cloud and devices stand for.
    """

    images: np.ndarray
    labels: np.ndarray
    served: np.ndarray
    alone: np.ndarray | None
    class_names: list[str]
    sides: tuple[list[int], list[int]]

    @property
    def confusion(self) -> np.ndarray:
        """How many images (true class, given class) there are."""
        count = len(self.class_names)
        pairs = self.labels * count + self.served
        return np.bincount(pairs, minlength=count * count).reshape(count, count)

    def taught(self) -> np.ndarray:
        """Return rows of images that the devices' data taught: right as served, wrong alone."""
        if self.alone is None:
            return np.array([], np.int64)
        right, was_wrong = self.served == self.labels, self.alone != self.labels
        of_devices = np.isin(self.labels, self.sides[1])
        return np.flatnonzero(right & was_wrong & of_devices)[:MOST_SHOWN]


def judge_run(folder: Path) -> Judged:
    """Return what the models of a run say of its test images.

    Raises ConfError where its data are not there, or its models do not serve images.
    """
    trained = load_run(folder)
    experiment = open_experiment(load_conf(str(folder / CONF_FILE), ["runtime.gpu=false"]))
    if not isinstance(experiment, ImageExperiment):
        raise ConfError(f"{folder}: its models do not serve images")
    images = experiment.images
    served = trained.modules["served"]
    answers = [_classes(served, images.test)]
    if isinstance(whole := served.model, ServedModel):
        alone = whole.cloud.eval()

        def without_co(batch: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = alone((batch - served.mean) / served.std)
            return logits

        answers.append(_classes(without_co, images.test))
    labels = np.asarray(images.test_labels)
    both = answers[1] if len(answers) > 1 else None
    return Judged(images.test, labels, answers[0], both, trained.class_names, experiment.classes)


def _classes(model: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray) -> np.ndarray:
    found = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(images[start : start + BATCH].copy())
            found.append(model(pixels.permute(0, 3, 1, 2).float() / 255).argmax(dim=1).numpy())
    return np.concatenate(found)
