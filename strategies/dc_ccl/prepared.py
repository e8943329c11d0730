"""Cloud submodels and mimics that are ready, kept by what decides their weights."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from dccl_flower.checkpoint import load_models, save_models
from dccl_flower.data.images import cache_root
from dccl_flower.experiment import Experiment
from dccl_flower.files import code_digest, content_key, write_folder
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.conf import conf_of

MODELS = ("cloud_submodel", "mimic")
DIGEST_FILE = "SHA256"
logger = logging.getLogger("dccl_flower")


class ReusedCloud(Cloud):
    """A cloud that takes over what the cache holds under ``key``, or leaves it there.

    A damaged entry is computed anew, after a warning.
    """

    def __init__(self, key: str, *models: Any, **options: Any) -> None:
        super().__init__(*models, **options)
        self._folder = cache_root() / f"cloud-{key}"

    def prepare(self) -> None:
        """Pretrain and distil, or find it done."""
        if self.prepared:
            return
        folder = self._folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # whoever comes second waits and finds it
            if folder.exists() and not _is_intact(folder):
                logger.warning("cache entry %s is damaged: computing it anew", folder.name)
                shutil.rmtree(folder)
            if folder.exists():
                self.adopt(**load_models(folder))
            else:
                super().prepare()
                write_folder(folder, self._write)

    def _write(self, folder: Path) -> None:
        states = self.state_dict()
        save_models(folder, {name: states[name] for name in MODELS})
        (folder / DIGEST_FILE).write_text(_digest(folder))


def prepared_key(experiment: Experiment) -> str:
    """Return a hash of everything that cloud submodel and mimic depend on."""
    conf, runtime = conf_of(experiment), experiment.conf.runtime
    model = replace(conf.model, co_start="base")  # which matters only later
    return content_key(
        code_digest(),
        version("torch"),
        experiment.images.key,
        conf.seed,
        [conf.data.train_fraction, conf.data.validation, conf.data.augment],
        [asdict(part) for part in (conf.split, model, conf.pretrain, conf.distil)],
        [runtime.server_threads, runtime.gpu, runtime.mixed_precision, runtime.channels_last],
    )


def _is_intact(folder: Path) -> bool:
    try:
        return (folder / DIGEST_FILE).read_text() == _digest(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in MODELS:
        digest.update((folder / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()
