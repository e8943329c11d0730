"""Models that are ready, kept in the cache by what decides their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from dccl_flower.cache import cache_entry
from dccl_flower.checkpoint import load_models, save_models
from dccl_flower.codecs import State
from dccl_flower.files import code_digest, content_key, sha256_of
from dccl_flower.image_experiment import ImageExperiment


def kept_models(name: str, make: Callable[[], dict[str, State]]) -> dict[str, State]:
    """Return models by role from the cache entry ``name``, making them where it is not there.

    A damaged entry is made anew, after a warning.
    """
    return load_models(cache_entry(name, lambda target: save_models(target, make())))


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
        [plan.mean.tolist(), plan.std.tolist()],
        [sha256_of(Path(part.weights)) for part in conf.model.with_weights().values()],
        *facts,
    )
