"""Build the three submodels that a configuration describes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from dccl_flower.config import BackboneConf, Conf, ConfError, ModelConf
from dccl_flower.models.control import NoControl
from dccl_flower.models.normalisation import NORM_RULES
from dccl_flower.models.split import slice_co, split_vertically
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
    co, mimic = _co_and_mimic(conf, shape, num_classes)
    return Submodels(_cloud_submodel(conf.model, conf.seed, shape, num_classes), co, mimic)


def build_base(conf: Conf, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build the uncut base model, with the weights that the submodels are cut from."""
    model = conf.model
    return build_model(model.base, shape[0], num_classes, model.pretrained, conf.seed, "base")


def build_device_modules(
    conf: Conf, shape: tuple[int, int, int], num_classes: int
) -> tuple[nn.Module, nn.Module]:
    """Build co-submodel and control as a device does: architectures only, weights come by wire.

    Raises ConfError where a model does not go with the images or cannot be cut.
    """
    bare = replace(
        conf.model,
        pretrained=False,
        co=replace(conf.model.co, pretrained=False),
        mimic=replace(conf.model.mimic, pretrained=False),
    )
    try:
        # Tensors without data: cutting a large base model must not cost a device its memory.
        with torch.device("meta"):
            modules = _co_and_control(replace(conf, model=bare), shape, num_classes)
            for module in modules:
                module.eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, StopIteration) as error:
        if isinstance(error, ConfError):
            raise
        cause = str(error).splitlines()[0]
        raise ConfError(f"model.base={bare.base}: does not fit images {shape} ({cause})") from error
    if any(_has_hidden_buffers(module) for module in modules):
        return _co_and_control(replace(conf, model=bare), shape, num_classes)
    co, control = (module.to_empty(device="cpu") for module in modules)
    for tensor in (*co.state_dict().values(), *control.state_dict().values()):
        tensor.zero_()
    return co, control


def _has_hidden_buffers(module: nn.Module) -> bool:
    """Tell whether the module computes with tensors that its state, and so the wire, leaves out."""
    return any(name not in module.state_dict() for name, _ in module.named_buffers())


def _cloud_submodel(
    model: ModelConf, seed: int, shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    base = build_model(model.base, shape[0], num_classes, model.pretrained, seed, "base")
    if model.co.name is not None:
        return base
    return split_vertically(base, torch.zeros(2, *shape), model.co_ratio, model.shared_stem)[0]


def _co_and_control(
    conf: Conf, shape: tuple[int, int, int], num_classes: int
) -> tuple[nn.Module, nn.Module]:
    co, mimic = _co_and_mimic(conf, shape, num_classes)
    if conf.control == "cloud_submodel":
        return co, _cloud_submodel(conf.model, conf.seed, shape, num_classes)
    return co, NoControl(co) if conf.control == "none" else mimic


def _co_and_mimic(
    conf: Conf, shape: tuple[int, int, int], num_classes: int
) -> tuple[nn.Module, nn.Module]:
    model = conf.model

    def build(backbone: BackboneConf, purpose: str) -> nn.Module:
        if backbone.name is not None:
            name, pretrained = backbone.name, backbone.pretrained
            return build_model(name, shape[0], num_classes, pretrained, conf.seed, purpose)
        # The co-submodel is cut from the very base that the cloud submodel is cut from.
        source = "base" if purpose == "co" else purpose
        base = build_model(model.base, shape[0], num_classes, model.pretrained, conf.seed, source)
        return slice_co(base, torch.zeros(2, *shape), model.co_ratio, model.shared_stem)

    co = build(model.co, "co")
    mimic = build(model.mimic if model.mimic.name is not None else model.co, "mimic")
    NORM_RULES[conf.normalisation].apply(co)
    return co, mimic
