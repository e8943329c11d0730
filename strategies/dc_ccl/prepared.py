"""Cloud submodels and mimics that are ready, kept by what decides their weights."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from dccl_flower.codecs import State
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.conf import conf_of
from dccl_flower.strategies.dc_ccl.method import PREPARED
from dccl_flower.strategies.kept import cloud_key, kept_models


class ReusedCloud(Cloud):
    """A cloud that takes over what the cache holds under ``key``, or leaves it there."""

    def __init__(self, key: str, *models: Any, **options: Any) -> None:
        super().__init__(*models, **options)
        self._entry = f"cloud-{key}"

    def prepare(self) -> None:
        """Pretrain and distil, or find it done."""
        if self.prepared:
            return
        models = kept_models(self._entry, self._prepared_models)
        if not self.prepared:
            self.adopt(**models)

    def _prepared_models(self) -> dict[str, State]:
        super().prepare()
        states = self.state_dict()
        return {name: states[name] for name in PREPARED}


def prepared_key(experiment: ImageExperiment) -> str:
    """Return a hash of everything that cloud submodel and mimic depend on."""
    conf = conf_of(experiment)
    model = replace(conf.model, co_start="base")  # which matters only later
    return cloud_key(experiment, *(asdict(part) for part in (model, conf.pretrain, conf.distil)))
