from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dccl_flower.config import TwoSidedRoundsConf
from dccl_flower.data.loader import endless
from dccl_flower.learning.central import train_pooled
from dccl_flower.learning.controlled import LocalRecipe, train_controlled

# Three batches, so that rounds of two steps begin in the middle of the data.
BATCHES = [
    (torch.randn(4, 2, generator=torch.Generator().manual_seed(seed)), torch.tensor([0, 1, 2, 1]))
    for seed in range(3)
]


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def rounds(count=4, local_steps=2, **options):
    return TwoSidedRoundsConf(count=count, local_steps=local_steps, lr=0.1, **options)


def pooled(co, conf, after_round=lambda done: None, control=None):
    train_pooled(
        co,
        control or net(9),
        BATCHES,
        functional.cross_entropy,
        conf,
        torch.Generator().manual_seed(0),
        after_round=after_round,
    )
    return co.state_dict()


def chained(conf, momentum):
    """Train as the rounds do one by one, on one stream of batches."""
    co, stream = net(1), endless(BATCHES, torch.Generator())
    rates = [0.1] * (conf.count - 2) + [0.05] * 2
    for rate in rates:
        recipe = LocalRecipe(conf.local_steps, rate, conf.momentum, conf.weight_decay)
        train_controlled(co, net(9), stream, functional.cross_entropy, recipe, momentum=momentum)
    return co.state_dict()


def same(left, right):
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize(("count", "local_steps"), [(1, 1), (3, 2), (2, 5)])
def test_as_many_steps_are_taken_as_by_a_side_in_all_rounds(count, local_steps):
    co, seen = net(1), []
    co.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pooled(co, rounds(count, local_steps))
    assert len(seen) == count * local_steps
    assert all(torch.equal(images, BATCHES[i % 3][0]) for i, images in enumerate(seen))


def test_it_is_controlled_training_round_by_round_with_momentum_kept():
    conf = rounds()
    assert same(pooled(net(1), conf), chained(conf, momentum={}))
    assert not same(pooled(net(1), conf), chained(conf, momentum=None))


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_batch_norms_see_mixed_batches_to_the_end(after):
    conf = rounds(freeze_statistics_after=after)
    assert same(pooled(net(1), conf), chained(rounds(), momentum={}))


def test_the_rate_follows_the_schedule_of_the_rounds():
    states = [pooled(net(1), rounds(lr_schedule=s)) for s in ("constant", "last_two_halved")]
    assert not same(*states)


def test_every_round_is_told_when_it_is_done():
    done, co, states = [], net(1), []

    def after_round(server_round):
        done.append(server_round)
        states.append(co[0].weight.detach().clone())

    pooled(co, rounds(count=3), after_round)
    assert done == [1, 2, 3]
    assert torch.equal(states[-1], co[0].weight)
    assert not torch.equal(states[0], states[1])


def test_the_control_is_not_changed():
    control = net(9)
    before = {name: tensor.clone() for name, tensor in control.state_dict().items()}
    pooled(net(1), rounds(), control=control)
    assert same(control.state_dict(), before)
