from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dccl_flower.config import ConfError
from dccl_flower.models.features import Featured
from dccl_flower.models.zoo import build_model

EXAMPLE = torch.zeros(2, 3, 32, 32)


def model(name="small_cnn", seed=0):
    return build_model(name, 3, 5, False, seed, "test")


@pytest.mark.parametrize(
    "name", ["small_cnn", "torchvision/mobilenet_v3_small", "timm/vit_tiny_patch16_224"]
)
def test_features_are_what_the_head_is_given(name):
    own = model(name)
    example = torch.randn(2, 3, 224 if "vit" in name else 32, 224 if "vit" in name else 32)
    backbone = Featured([own], example)
    features, logits = backbone(example)
    assert features.shape == (2, backbone.width)
    torch.testing.assert_close(logits, own.eval()(example))
    torch.testing.assert_close(backbone.linear_head()(features), logits)


def test_two_models_side_by_side():
    models = [model(seed=1), model("vgg16_slim", seed=2)]
    images = torch.randn(3, 3, 32, 32)
    backbone = Featured(models, EXAMPLE)
    features, logits = backbone(images)
    assert features.shape == (3, 128 + 128)
    torch.testing.assert_close(logits, sum(each(images) for each in models))
    torch.testing.assert_close(backbone.linear_head()(features), logits)


def test_it_stays_frozen_and_in_eval_mode():
    backbone = Featured([model()], EXAMPLE)
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_a_copy_is_one_of_its_own():
    backbone = Featured([model()], EXAMPLE)
    images = torch.randn(2, 3, 32, 32)
    copied = copy.deepcopy(backbone)
    for _ in range(2):
        for left, right in zip(backbone(images), copied(images), strict=True):
            torch.testing.assert_close(left, right)


def test_it_leaves_no_hook_that_would_hold_what_training_sees():
    own = model()
    Featured([own], EXAMPLE)(EXAMPLE)
    assert not any(module._forward_pre_hooks for module in own.modules())


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, images):
        return self.head(images.flatten(2).mT).mean(1)


def test_a_head_that_is_given_no_vector_is_refused():
    with pytest.raises(ConfError, match=r"Dense: its head head is given \[\(2, 1024, 3\)\]"):
        Featured([Dense()], EXAMPLE)
