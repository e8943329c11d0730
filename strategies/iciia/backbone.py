"""What the attention stands on: a model of its own, or the two halves of a finished DC-CCL run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from dccl_flower.codecs import State
from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.image_experiment import ImageExperiment, images_of, plan_of
from dccl_flower.learning.pretrain import pretrain
from dccl_flower.method import OnProgress
from dccl_flower.models.build import build_base, build_submodels
from dccl_flower.models.features import Featured
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies.dc_ccl.conf import DcCclConf
from dccl_flower.strategies.iciia.conf import conf_of
from dccl_flower.strategies.kept import cloud_key, kept_models

CONF_FILE = "conf.yaml"
SERVED = {"device": ("mimic", "co_submodel"), "cloud": ("cloud_submodel", "co_submodel")}


def build_backbone(experiment: ImageExperiment, fetch: bool = True) -> Featured:
    """Build what both halves compute features with; pretrained weights only where ``fetch`` says.

    Raises ConfError where a model does not go with the images, has no vector before its head, or
    ``method.backbone`` is no run to build on.
    """
    conf, images = conf_of(experiment), experiment.images
    if conf.method.backbone is None:
        models: list[nn.Module] = [build_base(conf, images.shape, images.num_classes, fetch)]
    else:
        of_run = _conf_of_run(Path(conf.method.backbone), experiment)
        built = build_submodels(of_run, images.shape, images.num_classes)
        by_role = {"mimic": built.mimic, "cloud_submodel": built.cloud, "co_submodel": built.co}
        models = [by_role[role] for role in SERVED[conf.method.serves]]
    try:
        return Featured(models, experiment.example).to(experiment.torch_device)
    except ConfError as error:
        given = conf.method.backbone
        key = f"model.base={conf.model.base}" if given is None else f"method.backbone={given}"
        raise ConfError(f"{key}: {error}") from error


def load_weights(backbone: Featured, experiment: ImageExperiment, on_progress: OnProgress) -> str:
    """Give a backbone its weights, trained here or by the run; return a hash of where from."""
    conf = conf_of(experiment)
    if conf.method.backbone is not None:
        return _load_run(backbone, Path(conf.method.backbone), SERVED[conf.method.serves])
    key = cloud_key(experiment, asdict(conf.model), asdict(conf.pretrain))
    (model,) = backbone.models

    def train() -> dict[str, State]:
        batches = experiment.cloud_loader(conf.pretrain.batch_size)
        generator = torch_generator(conf.seed, "backbone")
        model.requires_grad_(True)
        with isolated_rng(conf.seed, "backbone", "torch"):
            pretrain(
                model,
                batches,
                conf.pretrain,
                generator,
                experiment.validation_loader(),
                experiment.compute,
                partial(on_progress, "pretrain"),
            )
        model.requires_grad_(False)
        return {"backbone": model.state_dict()}

    states = kept_models(f"backbone-{key}", train) if conf.runtime.reuse else train()
    model.load_state_dict(states["backbone"])
    return key


def _load_run(backbone: Featured, folder: Path, roles: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for model, role in zip(backbone.models, roles, strict=True):
        path = folder / "models" / f"{role}.safetensors"
        try:
            blob = path.read_bytes()
            model.load_state_dict(load_safetensors(blob))
        except (OSError, SafetensorError, RuntimeError) as error:
            cause = " ".join(str(error).split())
            raise ConfError(f"method.backbone={folder}: its models/{path.name}: {cause}") from error
        digest.update(blob)
    return digest.hexdigest()


def _conf_of_run(folder: Path, experiment: ImageExperiment) -> DcCclConf:
    """Return the configuration of a finished run of DC-CCL whose cloud held the same images."""
    where = f"method.backbone={folder}"
    if not (folder / "results.json").is_file():
        raise ConfError(f"{where}: no finished run is there; expected a folder with results.json")
    of_run = load_conf(str(folder / CONF_FILE))
    if not isinstance(of_run, DcCclConf) or of_run.method.name != "dc_ccl":
        raise ConfError(f"{where}: a run of method {of_run.method.name}; expected dc_ccl")
    images = images_of(of_run)
    if images.key != experiment.images.key:
        raise ConfError(f"{where}: a run on other images ({of_run.data.name})")
    own, its = experiment.plan, plan_of(of_run, images)
    pairs = ((own.cloud, its.cloud), (own.validation, its.validation), (own.mean, its.mean))
    if not all(np.array_equal(*pair) for pair in (*pairs, (own.std, its.std))):
        must = "seed, data, split and devices must share them out as here"
        raise ConfError(f"{where}: its cloud held other images; {must}")
    return of_run
