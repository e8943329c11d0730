"""Models by name: our own plain nets, ``timm/NAME`` and ``torchvision/NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from dccl_flower.config import ConfError
from dccl_flower.models.head import find_head
from dccl_flower.seeds import isolated_rng

OWN_SIZE = (32, 32)
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of theirs, for training from scratch


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
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Build a classifier whose initial weights depend on seed and purpose alone.

    ``size``: height and width of the images, which models of one size alone are built for.
    ``weights``: the state of such a model, of which a head of other classes is left out. Raises
    ValueError, or what timm raises, where it does not fit.
    """
    library, _, model = name.partition("/")
    with isolated_rng(seed, "init", purpose):
        if library == "timm":
            given = {"in_chans": in_channels, "num_classes": num_classes}
            return _timm_model(model, pretrained, size, weights, given)
        if library == "torchvision":
            built = _torchvision_model(model, num_classes, pretrained, size)
        else:
            built = PlainCNN(OWN_MODELS[name], in_channels, num_classes)
        if weights is not None:
            _load(built, weights)
        return built


@dataclass(frozen=True)
class OwnImages:
    """The images that a model was made for, (height, width), and what their pixels in 0..1 lost."""

    size: tuple[int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def own_images(name: str) -> OwnImages:
    """Return what images a model was made for, as far as its library says."""
    library, _, model = name.partition("/")
    if library == "timm":
        from timm.data import resolve_model_data_config
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(model)
        facts = resolve_model_data_config(None, pretrained_cfg=config.to_dict() if config else {})
        return OwnImages(tuple(facts["input_size"][1:]), facts["mean"], facts["std"])
    if library == "torchvision":
        from torchvision.models import get_model_weights

        usual = get_model_weights(model).DEFAULT.transforms()
        return OwnImages((usual.crop_size[0],) * 2, tuple(usual.mean), tuple(usual.std))
    return OwnImages(OWN_SIZE)


def _timm_model(
    name: str,
    pretrained: bool,
    size: tuple[int, int] | None,
    weights: Mapping[str, Tensor] | None,
    given: dict[str, Any],
) -> nn.Module:
    import timm

    config = timm.get_pretrained_cfg(name)
    if size is not None and config and config.fixed_input_size:
        given["img_size"] = size
    drawn = timm.create_model(name, pretrained=pretrained, **given)
    if weights is None:
        return drawn
    # timm fits first layer and positions to the model, and is strict where the head fits already.
    state = {**weights, **_new_head(drawn, weights)}
    told = {"state_dict": state, "custom_load": False, "num_classes": given["num_classes"]}
    built = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=told, **given)
    # Or each copy of the model would have the state once more.
    cast(dict[str, Any], built.pretrained_cfg).pop("state_dict", None)
    return built


def _new_head(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the model's head where the weights have one of other classes; else nothing."""
    name, head = find_head(model)
    own = {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
    same = all(key in weights and weights[key].shape == t.shape for key, t in own.items())
    return {} if same else own


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load all but a head of other classes. Raises ValueError for another model's state."""
    own = model.state_dict()
    kept = {name: t for name, t in weights.items() if not name.startswith(AUXILIARY)}
    taken = {**kept, **_new_head(model, kept)}
    lost, unknown = own.keys() - taken.keys(), taken.keys() - own.keys()
    for names, fault in ((lost, "lacks"), (unknown, "has what the model has not,")):
        if names:
            raise ValueError(f"{fault} {min(names)!r}")
    model.load_state_dict(taken)


def _torchvision_model(
    name: str, num_classes: int, pretrained: bool, size: tuple[int, int] | None
) -> nn.Module:
    from torchvision.models import get_model

    given: dict[str, Any] = {"aux_logits": False} if name in WITH_AUXILIARY_HEADS else {}
    if pretrained:
        model = get_model(name, weights="DEFAULT", **given)
        head_name, head = find_head(model)
        model.set_submodule(head_name, nn.Linear(head.in_features, num_classes))
        return model
    if size is not None and name.startswith("vit_"):
        given["image_size"] = size[0]
    return get_model(name, num_classes=num_classes, **given)
