"""What the attention stands on: a model of its own, or the two halves of a finished DC-CCL run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import nn

from dccl_flower.checkpoint import load_models
from dccl_flower.codecs import State
from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.experiment import Experiment
from dccl_flower.learning.pretrain import pretrain
from dccl_flower.method import OnProgress
from dccl_flower.models.build import build_base, build_submodels
from dccl_flower.models.features import Featured
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies.dc_ccl.conf import DcCclConf
from dccl_flower.strategies.iciia.conf import conf_of
from dccl_flower.strategies.kept import cloud_key, kept_models

SERVED = {"device": ("mimic", "co_submodel"), "cloud": ("cloud_submodel", "co_submodel")}


def build_backbone(experiment: Experiment) -> Featured:
    """Build what both halves compute features with; weights come later.

    Raises ConfError where a model does not go with the images, has no vector before its head, or
    ``method.backbone`` is no run to build on.
    """
    conf, images = conf_of(experiment), experiment.images
    if conf.method.backbone is None:
        models: list[nn.Module] = [build_base(conf, images.shape, images.num_classes)]
    else:
        of_run = _conf_of_run(Path(conf.method.backbone), conf)
        built = build_submodels(of_run, images.shape, images.num_classes)
        by_role = {"mimic": built.mimic, "cloud_submodel": built.cloud, "co_submodel": built.co}
        models = [by_role[role] for role in SERVED[conf.method.serves]]
    return Featured(models, experiment.example).to(experiment.torch_device)


def load_weights(backbone: Featured, experiment: Experiment, on_progress: OnProgress) -> str:
    """Give a backbone its weights, trained here or by the run; return a hash of where from."""
    conf = conf_of(experiment)
    if conf.method.backbone is not None:
        folder = Path(conf.method.backbone) / "models"
        roles = SERVED[conf.method.serves]
        states = load_models(folder)
        for model, role in zip(backbone.models, roles, strict=True):
            model.load_state_dict(states[role])
        files = [(folder / f"{role}.safetensors").read_bytes() for role in roles]
        return hashlib.sha256(b"".join(files)).hexdigest()
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


def _conf_of_run(folder: Path, conf: Conf) -> DcCclConf:
    """Return the configuration of a finished run of DC-CCL on the same data."""
    where = f"method.backbone={folder}"
    if not (folder / "results.json").is_file():
        raise ConfError(f"{where}: no finished run is there; expected a folder with results.json")
    of_run = load_conf(str(folder / "conf.yaml"))
    if not isinstance(of_run, DcCclConf) or of_run.method.name != "dc_ccl":
        raise ConfError(f"{where}: a run of method {of_run.method.name}; expected dc_ccl")
    for key, own, its in _common(conf, of_run):
        if own != its:
            raise ConfError(f"{where}: its {key} is {its}; must be {own}, as here")
    return of_run


def _common(conf: Conf, of_run: Conf) -> Iterator[tuple[str, object, object]]:
    """Yield what must be the same in both: who holds which samples of which data."""
    yield "seed", conf.seed, of_run.seed
    for name in ("data", "split"):
        its = vars(getattr(of_run, name))
        for key, own in vars(getattr(conf, name)).items():
            yield f"{name}.{key}", own, its[key]
