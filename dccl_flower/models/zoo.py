"""Models by name: our own, ``timm/NAME`` and ``torchvision/NAME``."""

from __future__ import annotations

from torch import nn

from dccl_flower.config import ConfError
from dccl_flower.models.head import find_head
from dccl_flower.models.small import small_cnn, vgg16_cifar, vgg16_slim
from dccl_flower.seeds import isolated_rng

OWN_MODELS = {"small_cnn": small_cnn, "vgg16_cifar": vgg16_cifar, "vgg16_slim": vgg16_slim}


def check_model(key: str, name: str, in_channels: int) -> None:
    """Raise ConfError, naming the configuration key, unless :func:`build_model` knows the name."""
    library, _, model = name.partition("/")
    if library == "timm":
        import timm

        known = timm.is_model(model)
    elif library == "torchvision":
        import torchvision

        known = model in torchvision.models.list_models(module=torchvision.models)
        if known and in_channels != 3:
            raise ConfError(f"{key}={name}: torchvision models take RGB images; set data.rgb=true")
    else:
        known = name in OWN_MODELS
    if not known:
        own = ", ".join(OWN_MODELS)
        raise ConfError(f"{key}={name}: unknown model; allowed are {own}, timm/*, torchvision/*")


def build_model(
    name: str, in_channels: int, num_classes: int, pretrained: bool, seed: int, purpose: str
) -> nn.Module:
    """Build a classifier whose initial weights depend on seed and purpose alone."""
    library, _, model = name.partition("/")
    with isolated_rng(seed, "init", purpose):
        if library == "timm":
            import timm

            return timm.create_model(
                model, pretrained=pretrained, in_chans=in_channels, num_classes=num_classes
            )
        if library == "torchvision":
            return _torchvision_model(model, num_classes, pretrained)
        return OWN_MODELS[name](in_channels, num_classes)


def _torchvision_model(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    import torchvision

    if not pretrained:
        return torchvision.models.get_model(name, num_classes=num_classes)
    model = torchvision.models.get_model(name, weights="DEFAULT")
    head_name, head = find_head(model)
    model.set_submodule(head_name, nn.Linear(head.in_features, num_classes))
    return model
