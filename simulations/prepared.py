"""Cloud submodels and mimics that are ready, kept by what decides their weights."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from dccl_flower.checkpoint import load_models, save_models
from dccl_flower.data.images import cache_root
from dccl_flower.files import content_key, write_folder
from dccl_flower.simulations.experiment import Experiment
from dccl_flower.strategies.dc_ccl.cloud import Cloud

MODELS = ("cloud_submodel", "mimic")
DIGEST_FILE = "SHA256"
KERNELS = ("dccl_flower", "dccl_flower.data", "dccl_flower.models", "dccl_flower.learning")
ALL_CODE = (*KERNELS, "dccl_flower.fleet", "dccl_flower.flower", "dccl_flower.strategies.dc_ccl")


def prepare(
    experiment: Experiment, cloud: Cloud, note: Callable[[str], None] = lambda text: None
) -> None:
    """Pretrain and distil; with ``runtime.reuse`` take what the cache holds, or leave it there.

    A damaged entry is computed anew, after one line to ``note``.
    """
    if not experiment.conf.runtime.reuse:
        cloud.prepare()
        return
    folder = cache_root() / f"cloud-{prepared_key(experiment)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # whoever comes second waits and finds it
        if folder.exists() and not _is_intact(folder):
            note(f"cache entry {folder.name} is damaged: computing it anew")
            shutil.rmtree(folder)
        if folder.exists():
            states = load_models(folder)
            cloud.adopt(*(states[name] for name in MODELS))
            return
        cloud.prepare()
        states = {name: cloud.state_dict()[name] for name in MODELS}
        write_folder(folder, lambda target: _write(target, states))


def prepared_cloud(experiment: Experiment, note: Callable[[str], None]) -> Cloud:
    """Build the cloud and prepare it as :func:`prepare` does."""
    cloud = experiment.cloud(lambda *_: None)
    prepare(experiment, cloud, note)
    return cloud


def prepared_key(experiment: Experiment) -> str:
    """Return a hash of everything that cloud submodel and mimic depend on."""
    conf, runtime = experiment.conf, experiment.conf.runtime
    model = replace(conf.model, co_start="base")  # which matters only later
    return content_key(
        code_digest(*KERNELS),
        version("torch"),
        experiment.images.key,
        conf.seed,
        [conf.data.train_fraction, conf.data.validation, conf.data.augment],
        [asdict(part) for part in (conf.split, model, conf.pretrain, conf.distil)],
        [runtime.server_threads, runtime.gpu, runtime.mixed_precision, runtime.channels_last],
    )


@cache
def code_digest(*packages: str) -> str:
    """Return a hash of packages' sources, so that no result outlives a change of what made it."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted(Path(str(resources.files(package))).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _write(folder: Path, states: dict[str, dict[str, Tensor]]) -> None:
    save_models(folder, states)
    (folder / DIGEST_FILE).write_text(_digest(folder))


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
