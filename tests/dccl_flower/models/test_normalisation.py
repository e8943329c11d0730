from typing import get_args

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn
from torch.nn.functional import conv2d, hardswish
from torch.nn.modules.batchnorm import _BatchNorm

from dccl_flower.image_config import Normalisation
from dccl_flower.models.frozen import Frozen
from dccl_flower.models.normalisation import (
    NORM_RULES,
    NormRule,
    standardise_weights,
    to_group_norm,
)
from dccl_flower.models.zoo import build_model

NAMES = ["small_cnn", "torchvision/resnet18", "timm/resnet18", "timm/mobilenetv3_small_050"]


def converted(name):
    model = build_model(name, 3, 4, False, 0, "test")
    to_group_norm(model)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_no_batch_norm_is_left(name):
    before = build_model(name, 3, 4, False, 0, "test")
    after = converted(name)
    batch_norms = sum(isinstance(module, _BatchNorm) for module in before.modules())
    group_norms = sum(isinstance(module, nn.GroupNorm) for module in after.modules())
    assert group_norms == batch_norms > 0
    assert not any(isinstance(module, _BatchNorm) for module in after.modules())
    assert not any("running" in key for key in after.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_mapped_alike_whatever_stands_beside_it(name):
    model = converted(name).double().train()
    images = torch.randn(
        3, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        alone, together = model(images[:1]), model(images)[:1]
    assert torch.allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 2), (64, 16), (2, 1), (1, 1), (7, 1), (9, 1), (10, 2), (18, 3)]
)
def test_groups_of_about_four_channels_divide_the_channels(channels, groups):
    model = nn.Sequential(nn.BatchNorm2d(channels))
    to_group_norm(model)
    assert model[0].num_groups == groups
    assert model(torch.ones(1, channels, 2, 2)).shape == (1, channels, 2, 2)


def test_scale_shift_and_epsilon_are_kept():
    norm = nn.BatchNorm2d(4, eps=4.0)
    scale, shift = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0, 0.0, -1.0])
    norm.load_state_dict({"weight": scale, "bias": shift}, strict=False)
    model = nn.Sequential(norm)
    to_group_norm(model)
    # One group of mean 0 and variance 5, plus epsilon 4: divided by 3.
    found = model(torch.tensor([3.0, -3.0, 1.0, -1.0]).view(1, 4, 1, 1)).flatten()
    assert found.tolist() == pytest.approx([1.0, -1.0, 1.0, -4 / 3 - 1])


def test_scale_and_shift_stay_trainable_and_do_not_share_memory():
    norm = nn.BatchNorm1d(8)
    model = nn.Sequential(norm)
    to_group_norm(model)
    assert all(p.requires_grad for p in model.parameters())
    norm.weight.data.zero_()
    assert model[0].weight.tolist() == [1.0] * 8


def test_an_activation_that_timm_fused_into_its_norm_stays():
    before = build_model("timm/mobilenetv3_small_050", 3, 4, False, 0, "test")
    assert isinstance(before.bn1, _BatchNorm)
    after = converted("timm/mobilenetv3_small_050")
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = nn.GroupNorm(4, 16, eps=before.bn1.eps)
    assert torch.allclose(after.bn1(x), hardswish(plain(x)), atol=1e-6)


def test_norms_deep_inside_are_replaced_and_other_layers_kept():
    layer = nn.LayerNorm(3)
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.BatchNorm1d(4)), layer))
    to_group_norm(model)
    assert isinstance(model[0][0][0], nn.GroupNorm)
    assert model[0][1] is layer


@pytest.mark.parametrize("part", [nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4))])
def test_norms_in_frozen_parts_stay(part):
    model = nn.Sequential(Frozen(part), nn.BatchNorm2d(4))
    to_group_norm(model)
    assert isinstance(model[1], nn.GroupNorm)
    assert not any(isinstance(module, nn.GroupNorm) for module in model[0].modules())


def standardised(conv, seed=0):
    """Return the module that takes the place of a convolution with random weights."""
    torch.manual_seed(seed)
    nn.init.normal_(conv.weight, mean=0.7, std=3.0)
    model = nn.Sequential(conv)
    standardise_weights(model)
    return model[0]


def kernel_in_effect(conv):
    """Return the kernel (out, in, 3, 3) as it answers to images of a single bright pixel."""
    size = conv.in_channels * 9
    pixels = torch.eye(size).view(size, conv.in_channels, 3, 3)
    return conv(pixels).flatten(1).T.reshape(-1, conv.in_channels, 3, 3).detach()


def test_a_standardised_kernel_has_mean_zero_and_variance_one_by_output_channel():
    conv = standardised(nn.Conv2d(2, 5, 3, bias=False))
    kernel = kernel_in_effect(conv).flatten(1)
    torch.testing.assert_close(kernel.mean(1), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(kernel.var(1, correction=0), torch.ones(5), rtol=1e-4, atol=0)


def test_scale_and_shift_of_a_standardised_kernel_do_not_matter():
    conv = standardised(nn.Conv2d(2, 5, 3, bias=False))
    before = kernel_in_effect(conv)
    with torch.no_grad():
        conv.weight.mul_(torch.arange(1.0, 6).view(5, 1, 1, 1)).sub_(4)
    torch.testing.assert_close(kernel_in_effect(conv), before, rtol=1e-4, atol=1e-4)


def test_a_standardised_convolution_slides_as_the_one_it_replaces():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2)
    replaced = standardised(conv)
    weight = conv.weight.flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, correction=0, keepdim=True)
    images = torch.randn(2, 4, 9, 9)
    expected = conv2d(images, weight.view_as(conv.weight), conv.bias, 2, 1, 2, 2)
    torch.testing.assert_close(replaced(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["small_cnn", "torchvision/resnet18", "timm/resnet18"])
def test_every_convolution_is_standardised_and_the_state_stays(name):
    before, after = (build_model(name, 3, 4, False, 0, "test") for _ in range(2))
    standardise_weights(after)
    convolutions = [m for m in before.modules() if isinstance(m, nn.Conv2d)]
    replaced = [m for m in after.modules() if isinstance(m, StdConv2d)]
    assert len(replaced) == len(convolutions) > 0
    assert list(after.state_dict()) == list(before.state_dict())
    assert all(torch.equal(t, before.state_dict()[n]) for n, t in after.state_dict().items())
    assert all(p.requires_grad for p in after.parameters())


@pytest.mark.parametrize("part", [nn.Conv2d(4, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3))])
def test_convolutions_in_frozen_parts_stay(part):
    model = nn.Sequential(Frozen(part), nn.Sequential(nn.Conv2d(4, 4, 3)), nn.Linear(4, 4))
    linear = model[2]
    standardise_weights(model)
    assert isinstance(model[1][0], StdConv2d)
    assert not any(isinstance(module, StdConv2d) for module in model[0].modules())
    assert model[2] is linear


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("batch", NormRule("batch", pooled=False, changes=())),
        ("batch_frozen", NormRule("frozen", pooled=False, changes=())),
        ("batch_fused", NormRule("fused", pooled=True, changes=())),
        ("batch_mixed", NormRule("mixed", pooled=True, changes=())),
        ("group", NormRule("batch", pooled=False, changes=(to_group_norm,))),
        ("group_ws", NormRule("batch", False, (to_group_norm, standardise_weights))),
    ],
)
def test_what_each_normalisation_means(name, rule):
    assert NORM_RULES[name] == rule
    model = build_model("small_cnn", 3, 4, False, 0, "test")
    for change in rule.changes:
        change(model)
    kinds = {type(module) for module in model.modules()}
    is_grouped = name in ("group", "group_ws")
    assert (nn.GroupNorm in kinds, nn.BatchNorm2d in kinds) == (is_grouped, not is_grouped)
    assert (StdConv2d in kinds) == (name == "group_ws")


def test_every_normalisation_of_the_configuration_has_a_rule():
    assert set(NORM_RULES) == set(get_args(Normalisation))
