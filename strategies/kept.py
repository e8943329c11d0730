"""Models that are ready, kept in the cache by what decides their weights."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from dccl_flower.checkpoint import load_models, save_models
from dccl_flower.codecs import State
from dccl_flower.data.images import cache_root
from dccl_flower.files import code_digest, content_key, write_folder
from dccl_flower.image_experiment import ImageExperiment

DIGEST_FILE = "SHA256"
logger = logging.getLogger("dccl_flower")


def kept_models(name: str, make: Callable[[], dict[str, State]]) -> dict[str, State]:
    """Return models by role from the cache entry ``name``, making them where it is not there.

    A damaged entry is made anew, after a warning.
    """
    folder = cache_root() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # whoever comes second waits and finds it
        if folder.exists() and not _is_intact(folder):
            logger.warning("cache entry %s is damaged: computing it anew", name)
            shutil.rmtree(folder)
        if folder.exists():
            return load_models(folder)
        models = make()

        def write(aside: Path) -> None:
            save_models(aside, models)
            (aside / DIGEST_FILE).write_text(_digest(aside))

        write_folder(folder, write)
        return models


def cloud_key(experiment: ImageExperiment, *facts: object) -> str:
    """Return a hash of all that what the cloud trains on its own samples depends on.

    ``facts`` are plain values beside the data and the machine's settings.
    """
    conf, plan = experiment.conf, experiment.plan
    runtime = conf.runtime
    return content_key(
        code_digest(),
        version("torch"),
        experiment.images.key,
        conf.seed,
        conf.data.augment,
        [hashlib.sha256(rows.tobytes()).hexdigest() for rows in (plan.cloud, plan.validation)],
        [runtime.server_threads, runtime.gpu, runtime.mixed_precision, runtime.channels_last],
        *facts,
    )


def _is_intact(folder: Path) -> bool:
    try:
        return (folder / DIGEST_FILE).read_text() == _digest(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
