from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dccl_flower.learning.compute import Compute

PARTS = {"map": (2, 3, 4, 5), "rows": (2, 3), "vector": (3,)}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def is_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)


def test_by_default_all_is_computed_as_before():
    model, images = net(), torch.randn(2, 3, 3, 3)
    expected = copy.deepcopy(model)(images)
    compute = Compute()
    compute.module(model)
    with compute.autocast():
        assert torch.equal(model(compute.images(images)), expected)
    assert model[0].weight.is_contiguous()


@pytest.mark.parametrize("shape", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_keep_their_values_and_shape(shape, channels_last):
    images = torch.randn(shape)
    assert torch.equal(Compute(channels_last=channels_last).images(images), images)


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_lie_in_memory_as_asked_for(channels_last):
    images = Compute(channels_last=channels_last).images(torch.randn(2, 3, 4, 5))
    assert is_channels_last(images) is channels_last
    assert images.is_contiguous() is not channels_last


@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions_lie_in_memory_as_asked_for(channels_last):
    model = net()
    before, weight = copy.deepcopy(model.state_dict()), model[0].weight
    Compute(channels_last=channels_last).module(model)
    # In place: an optimizer made before must still hold the model's parameters.
    assert model[0].weight is weight
    assert is_channels_last(weight) is channels_last
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("on", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_mixed_precision_multiplies_in_bfloat16_inside_the_scope_alone(device, on, dtype):
    model, rows = nn.Linear(3, 2), torch.randn(2, 3)
    compute = Compute(device, mixed_precision=on)
    compute.module(model)
    with compute.autocast():
        assert model(rows).dtype == dtype
    assert model(rows).dtype == torch.float32
    assert model.weight.dtype == torch.float32


def test_a_model_and_images_go_to_the_device():
    model, compute = net(), Compute("meta")
    compute.module(model)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert compute.images(torch.zeros(1, 3, 3, 3)).device.type == "meta"
