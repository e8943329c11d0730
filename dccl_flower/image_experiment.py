"""One configuration with its images: who holds which of them, in which batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from dccl_flower.config import Conf, ConfError
from dccl_flower.data.clients import by_classes_held, like_devices
from dccl_flower.data.images import Images, known_shape, open_images
from dccl_flower.data.loader import ImageLoader
from dccl_flower.data.plan import Plan, open_plan
from dccl_flower.experiment import Experiment
from dccl_flower.image_config import ImageConf, ImageDataConf
from dccl_flower.models.zoo import check_model, own_images
from dccl_flower.seeds import derive_seed, numpy_generator

EVALUATION_BATCH = 200
MIN_UNSEEN, MAX_UNSEEN = 100, 5000


def images_of(conf: ImageConf) -> Images:
    """Open the images of a configuration, of the size that it or its base model says.

    Raises ConfError where they cannot be had.
    """
    return open_images(_sized(conf))


def shape_of(conf: ImageConf) -> tuple[tuple[int, int, int], int]:
    """Return an image's shape (C, H, W) and the number of classes, without data if known so.

    Raises ConfError where it takes data that cannot be had.
    """
    known = known_shape(_sized(conf))
    if known is not None:
        return known
    images = images_of(conf)
    return images.shape, images.num_classes


def _sized(conf: ImageConf) -> ImageDataConf:
    """Return where the images come from, their size as a number if there is any."""
    data = conf.data
    if data.image_size == "model":
        check_model("model.base", conf.model.base, in_channels=3)
        data = replace(data, image_size=own_images(conf.model.base).size[0])
    return data


def plan_of(conf: ImageConf, images: Images) -> Plan:
    """Return who holds what, with what pixels lose by a configuration.

    Raises ConfError where the split is impossible, or the model does not say what pixels lose.
    """
    plan = open_plan(conf, images)
    if conf.data.normalise == "cloud":
        return plan
    own, channels = own_images(conf.model.base), images.shape[0]
    if own.mean is None or own.std is None or len(own.mean) != channels:
        told = f"model.base={conf.model.base} says nothing of images with {channels} channels"
        raise ConfError(f"data.normalise=model: {told}")
    return replace(plan, mean=np.asarray(own.mean, "f4"), std=np.asarray(own.std, "f4"))


@dataclass(frozen=True)
class ImageExperiment(Experiment):
    """One configuration with its images and with who holds which of them.

    Scores are those of the test set, or, where ``scores_unseen``, of training images that neither
    side holds.
    """

    conf: ImageConf
    images: Images
    plan: Plan
    scores_unseen: bool = False

    @classmethod
    def open(cls, conf: Conf) -> ImageExperiment:
        """Decode and split the images of a configuration, or find them done.

        Raises ConfError where the data or the split is impossible.
        """
        given = cast(ImageConf, conf)
        images = images_of(given)
        return cls(given, images, plan_of(given, images))

    def on_unseen(self) -> ImageExperiment:
        """Return the experiment that scores by training images that neither side holds.

        Raises ConfError where ``data.train_fraction`` leaves none.
        """
        self.unseen_loader()
        return replace(self, scores_unseen=True)

    @property
    def example(self) -> torch.Tensor:
        """Two blank images (2, C, H, W), to measure and cut models by."""
        return torch.zeros(2, *self.images.shape)

    @property
    def classes(self) -> tuple[list[int], list[int]]:
        """The classes that the cloud and the devices stand for."""
        return self.plan.cloud_classes, self.plan.device_classes

    def facts(self) -> dict[str, Any]:
        """Return an image's shape (C, H, W), the classes by name, and what pixels lose."""
        pixels = {"mean": self.plan.mean.tolist(), "std": self.plan.std.tolist()}
        images = self.images
        classes = {"num_classes": images.num_classes, "classes": images.class_names}
        return {"shape": images.shape, **classes, **pixels}

    def device_loader(self, device: int) -> ImageLoader:
        """Return the private batches of a device."""
        size = self.conf.rounds.device_batch_size
        return self.training_loader(self.plan.devices[device], size, self.conf.data.augment)

    def cloud_loader(self, batch_size: int) -> ImageLoader:
        """Return the cloud's samples."""
        return self.training_loader(self.plan.cloud, batch_size, self.conf.data.augment)

    def cloud_clients(self, count: int, key: str) -> list[np.ndarray]:
        """Return the cloud's training samples as the rows of ``count`` clients like the devices.

        By natural id there is a client for each id, whatever the count. Raises ConfError, which
        blames ``key``, where there are fewer samples than clients.
        """
        return self._clients(self.plan.cloud, count, key, "cloud clients")

    def validation_clients(self, count: int, key: str) -> list[np.ndarray]:
        """Return the cloud's validation samples as :meth:`cloud_clients` does the others."""
        return self._clients(self.plan.validation, count, key, "validation clients")

    def training_loader(
        self, rows: np.ndarray, batch_size: int = EVALUATION_BATCH, augment: str = "none"
    ) -> ImageLoader:
        """Return the training images ``rows``, in that order."""
        images, plan = self.images, self.plan
        targets = torch.from_numpy(images.train_labels[rows])
        return ImageLoader(images.train, rows, targets, batch_size, plan.mean, plan.std, augment)

    def pooled_loader(self, batch_size: int) -> ImageLoader:
        """Return the training samples of both sides."""
        rows = np.concatenate([self.plan.cloud, self.plan.device_rows()])
        return self.training_loader(rows, batch_size, self.conf.data.augment)

    def validation_loader(self) -> ImageLoader:
        """Return the part of the cloud's own samples that decides when to stop."""
        return self.training_loader(self.plan.validation)

    def scoring_loader(self) -> ImageLoader:
        """Return the images that only score."""
        if self.scores_unseen:
            return self.unseen_loader()
        images, plan = self.images, self.plan
        rows = np.arange(len(images.test))
        targets = torch.from_numpy(images.test_labels[rows])
        return ImageLoader(images.test, rows, targets, EVALUATION_BATCH, plan.mean, plan.std)

    def device_test_loader(self, device: int) -> ImageLoader:
        """Return a device's part of the images that only score, in a random order that stays.

        Of each class it has a share like that of the devices' training samples that it holds. Every
        image is on one device, or on none where no device holds its class; a device may have none.
        The first call of a process shares them out, by the labels of all that the devices hold.
        """
        scoring, parts = self._device_tests
        part = parts[device]
        return replace(scoring, rows=scoring.rows[part], targets=scoring.targets[part])

    def unseen_loader(self) -> ImageLoader:
        """Return training images that neither side holds, to choose by without the test set.

        Raises ConfError where ``data.train_fraction`` leaves none.
        """
        held = [self.plan.cloud, self.plan.validation, self.plan.device_rows()]
        unused = np.setdiff1d(np.arange(len(self.images.train)), np.concatenate(held))
        if len(unused) < MIN_UNSEEN:
            wrong = f"must leave {MIN_UNSEEN} images to choose by, not {len(unused)}"
            raise ConfError(f"data.train_fraction={self.conf.data.train_fraction}: {wrong}")
        draw = numpy_generator(self.conf.seed, "unseen")
        size = min(MAX_UNSEEN, len(unused))
        return self.training_loader(draw.choice(unused, size, replace=False))

    @cached_property
    def _device_tests(self) -> tuple[ImageLoader, list[np.ndarray]]:
        scoring, labels = self.scoring_loader(), np.asarray(self.images.train_labels)
        held = [labels[rows] for rows in self.plan.devices]
        return scoring, by_classes_held(scoring.targets.numpy(), held, self.conf.seed)

    def _clients(self, rows: np.ndarray, count: int, key: str, purpose: str) -> list[np.ndarray]:
        conf, labels = replace(self.conf.devices, count=count), np.asarray(self.images.train_labels)
        seed = derive_seed(self.conf.seed, purpose)
        return like_devices(rows, labels, self.images.groups, conf, seed, key)
