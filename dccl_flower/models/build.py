"""Build the three submodels that a configuration describes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from dccl_flower.config import Conf, ModelConf
from dccl_flower.models.normalisation import to_group_norm
from dccl_flower.models.split import split_vertically
from dccl_flower.models.zoo import build_model, check_model


@dataclass
class Submodels:
    """The cloud submodel, the co-submodel, and the mimic that stands in for the cloud."""

    cloud: nn.Module
    co: nn.Module
    mimic: nn.Module


def check_models(model: ModelConf, in_channels: int) -> None:
    """Raise ConfError for a model name that the zoo does not know."""
    check_model("model.base", model.base, in_channels)
    for key, backbone in (("model.co.name", model.co), ("model.mimic.name", model.mimic)):
        if backbone.name is not None:
            check_model(key, backbone.name, in_channels)


def build_submodels(conf: Conf, shape: tuple[int, int, int], num_classes: int) -> Submodels:
    """Build cloud submodel, co-submodel and mimic for images of shape (C, H, W).

    Without names of their own the co-submodel is a slice of the base model and the mimic has the
    co-submodel's architecture; a co-submodel with its own backbone leaves the base model whole.
    """
    model, seed = conf.model, conf.seed

    def build(name: str, pretrained: bool, purpose: str) -> nn.Module:
        return build_model(name, shape[0], num_classes, pretrained, seed, purpose)

    def sliced(purpose: str) -> tuple[nn.Module, nn.Module]:
        base = build(model.base, model.pretrained, purpose)
        return split_vertically(base, torch.zeros(2, *shape), model.co_ratio, model.shared_stem)

    if model.co.name is not None:
        cloud = build(model.base, model.pretrained, "base")
        co = build(model.co.name, model.co.pretrained, "co")
    else:
        cloud, co = sliced("base")
    if model.mimic.name is not None:
        mimic = build(model.mimic.name, model.mimic.pretrained, "mimic")
    elif model.co.name is not None:
        mimic = build(model.co.name, model.co.pretrained, "mimic")
    else:
        mimic = sliced("mimic")[1]
    if conf.normalisation == "group":
        to_group_norm(co)
    return Submodels(cloud, co, mimic)


def build_device_modules(
    conf: Conf, shape: tuple[int, int, int], num_classes: int
) -> tuple[nn.Module, nn.Module]:
    """Build co-submodel and mimic as a device does: architectures only, weights come by wire."""
    bare = replace(
        conf.model,
        pretrained=False,
        co=replace(conf.model.co, pretrained=False),
        mimic=replace(conf.model.mimic, pretrained=False),
    )
    submodels = build_submodels(replace(conf, model=bare), shape, num_classes)
    return submodels.co, submodels.mimic
