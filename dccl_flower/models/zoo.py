"""Models by name: our own plain nets, ``timm/NAME`` and ``torchvision/NAME``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dccl_flower.config import ConfError
from dccl_flower.models.head import find_head
from dccl_flower.seeds import isolated_rng

OWN_SIZE, TIMM_SIZE = (32, 32), (224, 224)
TORCHVISION_SIZES = {"inception_v3": (299, 299)}
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


class PlainCNN(nn.Module):
    """Convolutions with batch norm, global average pooling and one linear head.

    ``widths`` gives the output channels of each 3x3 convolution; ``"pool"`` halves the image.
    """

    def __init__(self, widths: list[int | str], in_channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        return self.head(self.features(x).mean(dim=(2, 3)))


def _vgg16(width: int) -> list[int | str]:
    """Return the 13 convolutions of VGG16 (Simonyan and Zisserman, arXiv 1409.1556)."""
    widths: list[int | str] = [width, width, "pool", 2 * width, 2 * width, "pool"]
    for stage in (4 * width, 8 * width, 8 * width):
        widths += [stage, stage, stage, "pool"]
    return widths


OWN_MODELS: dict[str, list[int | str]] = {
    "small_cnn": [64, 64, "pool", 128, 128],  # 0.26 M parameters, for images of 8x8 up to 28x28
    "vgg16_cifar": _vgg16(64),  # for 32x32 images, without the fully connected layers
    "vgg16_half": _vgg16(32),  # half its width: 3.7 M parameters
    "vgg16_slim": _vgg16(16),  # a quarter of its width: 0.92 M parameters
}


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
    name: str,
    in_channels: int,
    num_classes: int,
    pretrained: bool,
    seed: int,
    purpose: str,
    size: tuple[int, int] | None = None,
) -> nn.Module:
    """Build a classifier whose initial weights depend on seed and purpose alone.

    ``size``: height and width of the images, which models of one size alone are built for.
    """
    library, _, model = name.partition("/")
    with isolated_rng(seed, "init", purpose):
        if library == "timm":
            import timm

            given: dict[str, Any] = {"in_chans": in_channels, "num_classes": num_classes}
            if size is not None and _has_one_size(model):
                given["img_size"] = size
            return timm.create_model(model, pretrained=pretrained, **given)
        if library == "torchvision":
            return _torchvision_model(model, num_classes, pretrained)
        return PlainCNN(OWN_MODELS[name], in_channels, num_classes)


def own_size(name: str) -> tuple[int, int]:
    """Return height and width of the images that a model was made for."""
    library, _, model = name.partition("/")
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(model)
        return config.input_size[1:] if config else TIMM_SIZE
    return TORCHVISION_SIZES.get(model, TIMM_SIZE) if library == "torchvision" else OWN_SIZE


def _has_one_size(model: str) -> bool:
    import timm

    config = timm.get_pretrained_cfg(model)
    return bool(config and config.fixed_input_size)


def _torchvision_model(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    from torchvision.models import get_model

    if not pretrained:
        given: dict[str, Any] = {"num_classes": num_classes}
        if name in WITH_AUXILIARY_HEADS:
            given["aux_logits"] = False
        return get_model(name, **given)
    model = get_model(name, weights="DEFAULT")
    head_name, head = find_head(model)
    model.set_submodule(head_name, nn.Linear(head.in_features, num_classes))
    return model
