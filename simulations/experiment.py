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

from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.data.images import Images, open_images
from dccl_flower.data.loader import ImageLoader
from dccl_flower.data.plan import Plan, open_plan
from dccl_flower.fleet.cohorts import fitting_tiers
from dccl_flower.fleet.profiles import load_fleet
from dccl_flower.fleet.tiers import Tiers
from dccl_flower.learning.compute import Compute
from dccl_flower.models.build import build_device_modules, build_submodels, check_models
from dccl_flower.seeds import numpy_generator
from dccl_flower.strategies.dc_ccl.cloud import Cloud, OnProgress

EVALUATION_BATCH = 200
MIN_UNSEEN, MAX_UNSEEN = 100, 5000


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

    @property
    def compute(self) -> Compute:
        """How the cloud's heavy models compute."""
        runtime = self.conf.runtime
        return Compute(self.torch_device, runtime.mixed_precision, runtime.channels_last)

    def device_modules(self) -> tuple[nn.Module, nn.Module]:
        """Build co-submodel and control without the cloud's weights."""
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
            validation_loader=self.validation_loader(),
            pretrain=conf.pretrain,
            distil=conf.distil,
            seed=conf.seed,
            control=conf.control,
            co_start=conf.model.co_start,
            compute=self.compute,
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

    def validation_loader(self) -> ImageLoader:
        """Return the part of the cloud's own samples that decides when to stop."""
        return self._plain_loader(self.plan.validation)

    def base_loader(self, pooled: bool) -> ImageLoader:
        """Return what a base model is trained on: the cloud's samples, or those of both sides."""
        rows = self._pooled_rows() if pooled else self.plan.cloud
        return self._train_loader(rows, self.conf.pretrain.batch_size)

    def pooled_loader(self) -> ImageLoader:
        """Return the training samples of both sides, in batches as large as all of a round's."""
        rounds, devices = self.conf.rounds, self.conf.devices
        cohort = devices.count if devices.per_round is None else devices.per_round
        size = rounds.cloud_batch_size + cohort * rounds.device_batch_size
        return self._train_loader(self._pooled_rows(), size)

    def unseen_loader(self) -> ImageLoader:
        """Return training images that neither side holds, to choose by without the test set.

        Raises ConfError where ``data.train_fraction`` leaves none.
        """
        held = [self.plan.cloud, self.plan.validation, self.plan.device_rows()]
        unused = np.setdiff1d(np.arange(len(self.images.train)), np.concatenate(held))
        if len(unused) < MIN_UNSEEN:
            given = f"data.train_fraction={self.conf.data.train_fraction}"
            raise ConfError(
                f"{given}: must leave {MIN_UNSEEN} images to choose by, not {len(unused)}"
            )
        draw = numpy_generator(self.conf.seed, "unseen")
        size = min(MAX_UNSEEN, len(unused))
        return self._plain_loader(draw.choice(unused, size, replace=False))

    def _pooled_rows(self) -> np.ndarray:
        return np.concatenate([self.plan.cloud, self.plan.device_rows()])

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


def check_devices(experiment: Experiment) -> None:
    """Raise ConfError where devices cannot build their models, or no tier can train them."""
    conf, modules = experiment.conf, experiment.device_modules()
    if conf.devices.profiles is None:
        return
    fleet = load_fleet(conf.devices.profiles, conf.devices.count, conf.seed)
    example = torch.zeros(2, *experiment.images.shape)
    blobs = {"exemplars": b""} if conf.exemplars > 0 else {}
    tiers = Tiers(fleet, *modules, example, conf.rounds, blobs, conf.wire.codec)
    fitting_tiers(fleet, tiers.memory)
    if any(tier.co_share != 1 for tier in fleet.tiers):
        for key, given in (
            ("rounds.scaffold=true", conf.rounds.scaffold),
            ("head_tuning=federated", conf.head_tuning != "none"),
        ):
            if given:
                raise ConfError(f"{key}: not with tiers of co_share below 1 in devices.profiles")


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
