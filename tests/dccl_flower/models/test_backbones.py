"""Of the models that docs/backbones.txt lists, most can be cut and trained; none hangs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from halves import check_halves
from torch.nn import functional

from dccl_flower.config import ConfError
from dccl_flower.image_config import MimicModelConf, SubmodelsConf
from dccl_flower.models.build import Parts, build_device_modules
from dccl_flower.models.zoo import own_images

NAMES = (Path(__file__).parents[3] / "docs" / "backbones.txt").read_text().split()
MOST_PIXELS, CLASSES = 64, 10
AT_LEAST = 75
ALWAYS = (
    *("timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224"),
    *("timm/swin_tiny_patch4_window7_224", "torchvision/resnext50_32x4d"),
    *("torchvision/regnet_y_400mf", "timm/convnext_atto", "timm/resnet18"),
)
_cut: list[str] = []


def halves_train(name: str) -> None:
    """Cut a model in two, check the halves, and take a step on each."""
    size = min(MOST_PIXELS, own_images(name).size[0]) if "inception" not in name else 128
    conf, shape = SubmodelsConf(model=MimicModelConf(base=name)), (3, size, size)
    parts = Parts(conf, shape, CLASSES)
    check_halves(parts.base, parts.cloud, parts.co)
    on_device, _ = build_device_modules(conf, shape, CLASSES)
    on_device.load_state_dict(parts.co.state_dict())
    for half in (parts.cloud, parts.co):
        optimizer = torch.optim.SGD(half.train().parameters(), lr=0.01)
        loss = functional.cross_entropy(half(torch.randn(2, *shape)), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_cut_or_refused_in_one_line(name):
    try:
        halves_train(name)
        _cut.append(name)
    except ConfError as error:
        told = str(error)
    else:
        told = f"model.base={name}: was cut"
    assert told.startswith(f"model.base={name}: ")
    assert "\n" not in told


@pytest.mark.slow
def test_most_can_be_cut():
    print(f"\n{len(_cut)} of {len(NAMES)} were cut and trained")
    assert len(NAMES) >= 100
    assert len(_cut) >= AT_LEAST
    assert set(ALWAYS) <= set(_cut)
