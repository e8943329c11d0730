from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import StdConv2d
from torch import nn

from dccl_flower.learning.cost import (
    Cost,
    batch_cost,
    forward_macs,
    model_cost,
    scoring_cost,
    training_memory,
    turn_flops,
)
from dccl_flower.models.build import build_base, build_device_modules
from dccl_flower.models.control import NoControl
from dccl_flower.models.frozen import Frozen
from dccl_flower.strategies.dc_ccl.conf import DcCclConf

IMAGE = torch.zeros(1, 1, 4, 4)


def small_net(conv=None, inplace=False):
    """A 3x3 convolution to two channels of 4x4, its norm, and a linear head over three classes."""
    conv = conv or nn.Conv2d(1, 2, 3, padding=1, bias=False)
    norm, relu = nn.BatchNorm2d(2), nn.ReLU(inplace)
    return nn.Sequential(conv, norm, relu, nn.Flatten(), nn.Linear(32, 3))


def test_convolution_norm_and_head_by_hand():
    # Weights 18 + 4 + 99; the norm also holds 4 statistics and a counter of 8 bytes.
    # MACs: 16 positions x 9 x 2 channels = 288, and 32 x 3 = 96. Backward: the convolution's
    # weights alone, 288, since images need no gradient; the head's weights and input, 2 x 96.
    # Saved: image 64 B, input of the norm 128 B, output of the ReLU 128 B, which the head shares;
    # mean and deviation of two channels once a batch.
    assert model_cost(small_net(), IMAGE) == Cost(
        parameters=121,
        trainable_parameters=121,
        state_bytes=4 * 125 + 8,
        exchanged_bytes=4 * 125,
        forward_macs=288 + 96,
        training_flops=2 * (288 + 96) + 2 * (288 + 2 * 96),
        activation_bytes=64 + 128 + 128,
        batch_bytes=2 * 2 * 4,
        layer_bytes=128 + 128,
    )


def test_a_frozen_stem_by_hand():
    # Behind the stem nothing needs the head's input gradient, and the stem saves nothing.
    model = small_net()
    model[0], model[1] = Frozen(model[0]), Frozen(model[1])
    assert model_cost(model, IMAGE) == Cost(
        parameters=121,
        trainable_parameters=99,
        state_bytes=4 * 125 + 8,
        exchanged_bytes=4 * 99,
        forward_macs=288 + 96,
        training_flops=2 * (288 + 96) + 2 * 96,
        activation_bytes=128,
        batch_bytes=0,
        layer_bytes=128 + 128,
    )


def test_a_layer_that_works_in_place_holds_its_memory_once():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.ReLU(inplace=True))
    assert model_cost(model, IMAGE).layer_bytes == 4 * (16 + 40)
    model[2] = nn.ReLU()
    assert model_cost(model, IMAGE).layer_bytes == 4 * (40 + 40)


def test_a_depthwise_convolution_counts_by_its_groups():
    # On 2 x 2 positions: 1x1 to four channels, 16 MACs; depthwise 3x3, 4 x 9 x 4 = 144.
    depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), depthwise, nn.Flatten(), nn.Linear(16, 3))
    cost = model_cost(model, torch.zeros(1, 1, 2, 2))
    forward = 16 + 144 + 48
    assert cost.forward_macs == forward
    assert cost.training_flops == 2 * forward + 2 * (16 + 2 * 144 + 2 * 48)


def test_a_transposed_convolution_counts_by_its_input():
    # 2 x 2 positions, each times 1 x 2 channels x 2 x 2 weights: 32 MACs to two maps of 4 x 4.
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 2, 2, stride=2), nn.Flatten(), nn.Linear(32, 3)
    )
    cost = model_cost(model, torch.zeros(1, 1, 2, 2))
    forward = 4 + 32 + 96
    assert cost.forward_macs == forward
    assert cost.training_flops == 2 * forward + 2 * (4 + 2 * 32 + 2 * 96)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 30), min_size=3, max_size=5))
def test_linear_layers_of_any_width(widths):
    sizes = list(pairwise(widths))
    cost = model_cost(
        nn.Sequential(*(nn.Linear(*size) for size in sizes)), torch.zeros(1, widths[0])
    )
    products = [a * b for a, b in sizes]
    assert cost.parameters == sum(products) + sum(widths[1:])
    assert cost.exchanged_bytes == cost.state_bytes == 4 * cost.parameters
    assert cost.forward_macs == sum(products)
    assert cost.training_flops == 6 * sum(products) - 2 * products[0]
    assert cost.activation_bytes == 4 * sum(widths[:-1])


def test_standardised_weights_are_saved_once_a_batch():
    plain = model_cost(small_net(), IMAGE)
    standardised = model_cost(small_net(StdConv2d(1, 2, 3, padding=1)), IMAGE)
    assert standardised.activation_bytes == plain.activation_bytes
    assert standardised.batch_bytes >= plain.batch_bytes + 4 * 18


def test_only_the_shape_of_an_image_matters():
    assert model_cost(small_net(), torch.randn(7, 1, 4, 4)) == model_cost(small_net(), IMAGE)


def test_on_the_meta_device_the_counts_are_the_same():
    assert model_cost(small_net().to("meta"), IMAGE.to("meta")) == model_cost(small_net(), IMAGE)


@pytest.mark.parametrize("mode", [True, False])
def test_model_and_global_generator_are_left_as_they_are(mode):
    model = small_net(inplace=True).train(mode)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    model_cost(model, IMAGE)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training is mode for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_no_control_costs_nothing_to_score_or_train():
    cost = model_cost(NoControl(small_net()), IMAGE)
    assert cost == Cost(layer_bytes=64 + 12)


def test_images_that_do_not_fit_are_an_error():
    with pytest.raises(RuntimeError):
        model_cost(small_net(), torch.zeros(1, 1, 5, 5))


def test_a_model_that_trains_on_more_than_logits_is_an_error():
    class Twins(nn.Module):
        def forward(self, x):
            logits = x.flatten(1)
            return (logits, logits) if self.training else logits

    with pytest.raises(ValueError, match="gives tuple in training, expected logits"):
        model_cost(Twins(), IMAGE)


class Matches(nn.Module):
    """A score (B,) of columns that a batch holds by name: 3 * 4 MACs a sample, then 4."""

    def __init__(self):
        super().__init__()
        self.users, self.linear = nn.Embedding(9, 3), nn.Linear(3, 4, bias=False)

    def forward(self, samples):
        wanted = self.linear(self.users(samples["user"]))
        return torch.bmm(wanted.unsqueeze(1), samples["item"].unsqueeze(2)).flatten()


COLUMNS = {"user": torch.full((1,), 8), "item": torch.ones(1, 4)}


def test_samples_may_be_columns_by_name():
    cost = model_cost(Matches(), COLUMNS)
    assert (cost.trainable_parameters, cost.forward_macs) == (27 + 12, 12 + 4)
    # Backward: weights and inputs of the linear layer, and of the product the side that learns.
    assert cost.training_flops == 2 * (16 + 12 + 12 + 4)
    assert forward_macs(Matches(), {n: t.expand(5, *t.shape[1:]) for n, t in COLUMNS.items()}) == 80


@pytest.mark.parametrize("size", [2, 6])
def test_a_batch_whose_samples_see_each_other_costs_as_a_whole(size):
    class Attention(nn.Module):
        def forward(self, features):
            return features @ (features.T @ features)

    features = torch.zeros(size, 3)
    assert batch_cost(Attention(), features).forward_macs == 2 * size * 9
    module = nn.Sequential(nn.Linear(3, 2, bias=False))
    whole, each = batch_cost(module, features), model_cost(module, features)
    assert whole.training_flops == size * each.training_flops
    assert whole.activation_bytes == size * each.activation_bytes + each.batch_bytes


def test_what_only_scores_may_give_anything():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, images):
            return self.net(images), images

    cost, alone = scoring_cost(Twins(), IMAGE), model_cost(small_net(), IMAGE)
    assert (cost.forward_macs, cost.state_bytes) == (alone.forward_macs, alone.state_bytes)
    assert cost.training_flops == cost.activation_bytes == 0
    assert cost.layer_bytes >= alone.layer_bytes


CO = Cost(
    trainable_parameters=100,
    state_bytes=500,
    training_flops=7000,
    activation_bytes=60,
    batch_bytes=30,
)


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        (0, 500 + 800 + 400 + 30 + 5 * (60 + 10)),
        (1, 500 + 800 + 400 + 400 + 30 + 5 * (60 + 10)),
        (2, 500 + 800 + 400 + 800 + 30 + 5 * (60 + 10)),
    ],
)
def test_training_memory_by_hand(moments, expected):
    control = Cost(state_bytes=800, layer_bytes=10, activation_bytes=10**6)
    assert training_memory(CO, control, 5, moments) == expected


def test_turn_flops_by_hand():
    control = Cost(forward_macs=40, training_flops=10**6)
    assert turn_flops(CO, control, 3) == 3 * (7000 + 2 * 40)
    assert turn_flops(CO, Cost(), 3) == 3 * 7000


def test_device_modules_spare_the_base_model():
    conf, shape = DcCclConf(), (1, 8, 8)
    example = torch.zeros(1, *shape)
    co, control = (model_cost(m, example) for m in build_device_modules(conf, shape, 10))
    base = model_cost(build_base(conf, shape, 10), example)
    # small_cnn: 8x8 and, behind the pool, 4x4 positions; channels 64, 64, 128, 128.
    assert base.forward_macs == 64 * 9 * (64 + 64 * 64) + 16 * 9 * (64 * 128 + 128 * 128) + 1280
    assert co.forward_macs == 64 * 9 * (8 + 8 * 8) + 16 * 9 * (8 * 16 + 16 * 16) + 160
    assert co.forward_macs == control.forward_macs
    assert 8 * turn_flops(co, control, 1) < base.training_flops
    assert 8 * training_memory(co, control, 20, 1) < training_memory(base, Cost(), 20, 1)
