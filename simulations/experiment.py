"""From a configuration to the objects that server and clients work with."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dccl_flower.cloud import Cloud, OnProgress
from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.data.images import Images, open_images
from dccl_flower.data.loader import ImageLoader
from dccl_flower.data.plan import Plan, open_plan
from dccl_flower.models.build import build_device_modules, build_submodels, check_models

EVALUATION_BATCH = 200


@dataclass(frozen=True)
class Experiment:
    """One configuration with its images and with who holds which of them."""

    conf: Conf
    images: Images
    plan: Plan

    @property
    def torch_device(self) -> torch.device:
        """The device that trains: the GPU where the configuration asks for it."""
        return torch.device("cuda" if self.conf.runtime.gpu else "cpu")

    def device_modules(self) -> tuple[nn.Module, nn.Module]:
        """Build co-submodel and mimic without the cloud's weights."""
        return build_device_modules(self.conf, self.images.shape, self.images.num_classes)

    def cloud(self, on_progress: OnProgress) -> Cloud:
        """Build the cloud with its models and data."""
        conf, images = self.conf, self.images
        models = build_submodels(conf, images.shape, images.num_classes)
        return Cloud(
            models.cloud,
            models.mimic,
            models.co,
            self._train_loader(self.plan.cloud, conf.pretrain.batch_size),
            co_loader=self._train_loader(self.plan.cloud, conf.rounds.cloud_batch_size),
            validation_loader=self._plain_loader(self.plan.validation),
            pretrain=conf.pretrain,
            distil=conf.distil,
            seed=conf.seed,
            torch_device=self.torch_device,
            on_progress=on_progress,
        )

    def device_loader(self, device: int) -> ImageLoader:
        """Return the private batches of a device."""
        return self._train_loader(self.plan.devices[device], self.conf.rounds.device_batch_size)

    def test_loader(self) -> ImageLoader:
        """Return the test set, which only scores."""
        rows = np.arange(len(self.images.test))
        labels = self.images.test_labels
        return self._loader(self.images.test, labels, rows, EVALUATION_BATCH, "none")

    def _train_loader(self, rows: np.ndarray, batch_size: int) -> ImageLoader:
        images, labels = self.images.train, self.images.train_labels
        return self._loader(images, labels, rows, batch_size, self.conf.data.augment)

    def _plain_loader(self, rows: np.ndarray) -> ImageLoader:
        images, labels = self.images.train, self.images.train_labels
        return self._loader(images, labels, rows, EVALUATION_BATCH, "none")

    def _loader(
        self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, size: int, augment: str
    ) -> ImageLoader:
        targets = torch.from_numpy(labels[rows])
        return ImageLoader(images, rows, targets, size, self.plan.mean, self.plan.std, augment)


def open_experiment(conf: Conf) -> Experiment:
    """Decode and split the data of a configuration, or find them done.

    Raises ConfError where the data, the split or a model name is impossible.
    """
    if conf.runtime.gpu and not torch.cuda.is_available():
        raise ConfError("runtime.gpu=true: torch sees no GPU here")
    images = open_images(conf.data)
    check_models(conf.model, images.shape[0])
    plan = open_plan(conf, images)
    if conf.exemplars > len(plan.cloud):
        raise ConfError(f"exemplars={conf.exemplars}: the cloud has {len(plan.cloud)} samples")
    return Experiment(conf, images, plan)


@cache
def cached_experiment(name_or_path: str, overrides: str) -> Experiment:
    """Return the experiment of a run, built once a process."""
    return open_experiment(load_conf(name_or_path, shlex.split(overrides)))


def device_store(conf: Conf, run_id: int) -> Path:
    """Return the folder where this run's devices keep what they received."""
    if conf.devices.store is not None:
        return Path(conf.devices.store).expanduser().resolve()
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    return home / "dccl-devices" / str(run_id)
