from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dccl_flower.image_config import TwoSidedRoundsConf
from dccl_flower.learning.batch_statistics import (
    OtherSide,
    mixed_statistics,
    pooled_statistics,
    step_statistics,
)
from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.fusion import Copy, Fusion
from dccl_flower.learning.server_update import ServerUpdate
from dccl_flower.models.frozen import Frozen


def net(eps=0.0):
    return nn.Sequential(nn.BatchNorm1d(1, eps=eps)).eval()


def other(mean, variance, own_share):
    state = {"0.running_mean": torch.tensor([mean]), "0.running_var": torch.tensor([variance])}
    return OtherSide(state, own_share)


def column(*values):
    return torch.tensor(values).view(-1, 1)


def test_a_norm_uses_the_mixture_of_its_batch_and_the_other_side():
    # The batch has mean 0 and variance 1, the other side 4 and 1, each a half: the mixture has
    # mean 2 and variance 1 + 2 * 2.
    model = net()
    with mixed_statistics(model, other(4.0, 1.0, 0.5)):
        out = model(column(-1.0, 1.0))
    torch.testing.assert_close(out, column(-3.0, -1.0) / 5**0.5)


def test_shares_weigh_the_sides():
    # A quarter of (0, 1) and three of (4, 1): mean 3, variance 1 + 0.25 * 9 + 0.75 * 1.
    model = net()
    with mixed_statistics(model, other(4.0, 1.0, 0.25)):
        out = model(column(-1.0, 1.0))
    torch.testing.assert_close(out, column(-4.0, -2.0) / 4**0.5)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 5)])
def test_the_whole_share_is_batch_norm_gradients_included(shape):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3) if len(shape) == 4 else nn.BatchNorm1d(3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    model = nn.Sequential(layer).eval()
    ours, theirs = (torch.randn(shape, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        theirs.copy_(ours)
    with mixed_statistics(model, OtherSide({}, 1.0)):
        out = model(ours)
    wanted = functional.batch_norm(theirs, None, None, layer.weight, layer.bias, training=True)
    torch.testing.assert_close(out, wanted)
    weights = torch.randn(shape)
    (out * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_half_batches_of_two_sides_give_what_one_pooled_batch_gives():
    torch.manual_seed(1)
    cloud, device = torch.randn(8, 1), 3 + 2 * torch.randn(8, 1)
    pooled = functional.batch_norm(torch.cat([cloud, device]), None, None, training=True)
    model = net(eps=1e-5)
    halves = []
    for own, far in ((cloud, device), (device, cloud)):
        beside = other(far.mean().item(), far.var(correction=0).item(), 0.5)
        with mixed_statistics(model, beside):
            halves.append(model(own))
    torch.testing.assert_close(torch.cat(halves), pooled)


def test_without_word_of_the_other_side_a_norm_takes_what_it_holds():
    model = net()
    model[0].running_mean.fill_(4.0)
    with mixed_statistics(model, OtherSide({}, 0.5)):
        out = model(column(-1.0, 1.0))
    torch.testing.assert_close(out, column(-3.0, -1.0) / 5**0.5)


def test_the_norm_is_itself_again_afterwards_and_frozen_parts_always_are():
    model = nn.Sequential(Frozen(nn.BatchNorm1d(1, eps=0.0)), nn.BatchNorm1d(1, eps=0.0)).eval()
    with mixed_statistics(model, OtherSide({}, 1.0)):
        torch.testing.assert_close(model(column(1.0, 3.0)), column(-1.0, 1.0))
        torch.testing.assert_close(model[0](column(1.0, 3.0)), column(1.0, 3.0))
    torch.testing.assert_close(model(column(1.0, 3.0)), column(1.0, 3.0))


def test_training_leaves_the_sides_own_statistics():
    class Control(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 2)

    model = nn.Sequential(nn.BatchNorm1d(1, eps=0.0), nn.Linear(1, 2)).eval()
    batches = iter([(column(1.0, 3.0), torch.tensor([0, 1]))])
    recipe = LocalRecipe(1, 0.1, statistics="mixed")
    beside = other(10.0, 1.0, 0.5)
    train_controlled(model, Control(), batches, functional.cross_entropy, recipe, other=beside)
    assert model[0].running_mean.tolist() == [2.0]
    assert model[0].running_var.tolist() == [1.0]


def side(mean, variance, count):
    names = {"0.weight": 1.0, "0.running_mean": mean, "0.running_var": variance}
    return Copy({name: torch.tensor([value]) for name, value in names.items()}, count)


def test_the_server_tells_each_side_of_the_other_and_serves_the_mixture():
    fusion = Fusion(pooled_statistics=True)
    update = ServerUpdate(TwoSidedRoundsConf(cloud_weight=0.75), fusion, "head")
    assert all(not beside.statistics for beside in update.other_sides())
    cloud, devices = side(0.0, 1.0, 0), [side(2.0, 1.0, 1), side(6.0, 1.0, 3)]
    recipe = LocalRecipe(1, 0.1, statistics="mixed")
    state = update.next_state(cloud.state, cloud, devices, recipe)
    beside_cloud, beside_devices = update.other_sides()
    # devices: mean (2 + 3 * 6) / 4, variance 1 + (9 + 3 * 1) / 4
    assert beside_cloud.statistics["0.running_mean"].item() == 5.0
    assert beside_cloud.statistics["0.running_var"].item() == 4.0
    assert beside_devices.statistics["0.running_mean"].item() == 0.0
    assert (beside_cloud.own_share, beside_devices.own_share) == (0.75, 0.25)
    assert "0.weight" not in beside_devices.statistics
    wanted = pooled_statistics(
        [cloud.state, *(copy.state for copy in devices)], [0.75, 0.0625, 0.1875]
    )
    assert {name: state[name] for name in wanted} == wanted


def test_statistics_go_a_share_of_the_way_and_weights_all_of_it():
    before, after = side(0.0, 1.0, 1).state, side(10.0, 3.0, 1).state
    after["0.weight"] = torch.tensor([5.0])
    stepped = step_statistics(before, after, 0.25)
    assert {name: tensor.item() for name, tensor in stepped.items()} == {
        "0.weight": 5.0,
        "0.running_mean": 2.5,
        "0.running_var": 1.5,
    }
    assert step_statistics(before, after, 1.0) == after
