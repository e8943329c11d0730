from __future__ import annotations

import pytest
import torch
from small_experiments import (
    answered,
    device_of,
    end_of,
    filled,
    halves,
    small_experiment,
    two_widths,
)
from torch import nn

from dccl_flower.fleet.profiles import load_fleet
from dccl_flower.learning.batch_statistics import is_statistic
from dccl_flower.strategies.heterofl import measure_static, scaled


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """An experiment, and the devices that train half the width and the whole."""
    profiles = two_widths(tmp_path_factory.mktemp("fleet"))
    experiment = small_experiment("method.name=heterofl", "devices.count=4", profiles)
    fleet = load_fleet(experiment.conf.devices.profiles, 4, experiment.conf.seed)
    narrow = [d for d in range(4) if fleet.tier_of(d).co_share < 1]
    return experiment, narrow, [d for d in range(4) if d not in narrow]


def first_convolution(state):
    return next(name for name, tensor in state.items() if tensor.dim() == 4)


def test_each_tier_is_sent_the_leading_channels_of_the_base_model(four_devices):
    experiment, (narrow, _), (wide, _) = four_devices
    server, half = halves(experiment)
    server.workload()
    state = server.initial_state()
    asks = next(server.round(1, state, range(4)))
    name = first_convolution(state)
    filters = len(state[name])
    assert torch.equal(asks[wide].state[name], state[name])
    assert torch.equal(asks[narrow].state[name], state[name][: filters // 2])
    device = device_of(experiment, narrow, "unused")
    like = half.state_like(asks[narrow].turn, device)
    assert {n: t.shape for n, t in like.items()} == {
        n: t.shape for n, t in asks[narrow].state.items()
    }


def test_an_entry_is_averaged_over_those_who_hold_it(four_devices):
    experiment, narrow, wide = four_devices
    server, _ = halves(experiment)
    server.workload()
    state = server.initial_state()
    exchange = server.round(1, state, [narrow[0], wide[0]])
    answers = answered(next(exchange), {narrow[0]: 1.0, wide[0]: 5.0}, {narrow[0]: 30, wide[0]: 10})
    measuring = exchange.send(answers)
    joined = measuring[wide[0]].state
    name = first_convolution(state)
    half = len(state[name]) // 2
    assert torch.equal(joined[name][:half], torch.full_like(joined[name][:half], 2.0))
    assert torch.equal(joined[name][half:], torch.full_like(joined[name][half:], 5.0))


def test_statistics_are_asked_for_once_the_weights_are_joined(four_devices):
    experiment, narrow, wide = four_devices
    server, _ = halves(experiment)
    server.workload()
    state = server.initial_state()
    who = [narrow[0], wide[0]]
    exchange = server.round(1, state, who)
    first = answered(next(exchange), dict.fromkeys(who, 3.0), dict.fromkeys(who, 10))
    asks = exchange.send(first)
    assert sorted(asks) == sorted(who)
    assert {is_statistic(name) for name in asks[who[0]].like} == {True}
    # Training changed none of them, whatever the copies said.
    kept = {n: t for n, t in asks[who[0]].state.items() if is_statistic(n)}
    assert all(torch.equal(tensor, state[name]) for name, tensor in kept.items())
    second = answered(asks, {who[0]: 1.0, who[1]: 3.0}, {who[0]: 10, who[1]: 30})
    ended = end_of(exchange, second)
    mean = next(name for name in kept if name.endswith("running_mean"))
    variance = mean.replace("running_mean", "running_var")
    torch.testing.assert_close(ended[mean], torch.full_like(ended[mean], 2.5))
    # Means 1 and 3, weights 1/4 and 3/4: (1 + 9 x 3) / 4 - 2.5 squared lies between the devices.
    torch.testing.assert_close(ended[variance], torch.full_like(ended[variance], 2.5 + 0.75))


def test_a_device_trains_its_width_and_measures_the_whole(four_devices, tmp_path):
    experiment, (narrow, _), _ = four_devices
    server, half = halves(experiment)
    server.workload()
    exchange = server.round(1, server.initial_state(), [narrow])
    asks = next(exchange)
    trained = half.turn(asks[narrow], device_of(experiment, narrow, tmp_path))
    name = first_convolution(trained.state)
    assert trained.state[name].shape == asks[narrow].state[name].shape
    assert not torch.equal(trained.state[name], asks[narrow].state[name])
    measuring = exchange.send({narrow: trained})[narrow]
    measured = half.turn(measuring, device_of(experiment, narrow, tmp_path))
    assert {n: t.shape for n, t in measured.state.items()} == {
        n: t.shape for n, t in measuring.like.items()
    }


def test_static_statistics_are_the_plain_average_over_batches():
    norm = nn.BatchNorm1d(1, affine=False)
    norm.running_mean.fill_(7.0)
    batches = [(torch.tensor([[1.0], [3.0]]), None), (torch.tensor([[5.0], [11.0]]), None)]
    measure_static(nn.Sequential(norm), batches, "cpu")
    # Means 2 and 8, unbiased variances 2 and 18.
    assert (norm.running_mean.item(), norm.running_var.item()) == (5.0, 10.0)
    assert (norm.momentum, norm.training) == (0.1, False)


def test_a_narrow_convolution_gives_more_while_it_trains():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    nn.init.ones_(model[0].weight)
    image = torch.full((1, 1, 1, 1), 3.0)
    for _ in range(2):  # a worker meets it again and again
        with scaled(model, 0.25):
            assert model.train()(image).item() == 12.0
            assert model.eval()(image).item() == 3.0
        assert model.train()(image).item() == 3.0


def test_without_profiles_everybody_trains_the_base_model(tmp_path):
    experiment = small_experiment("method.name=heterofl")
    server, half = halves(experiment)
    state = server.initial_state()
    ask = next(server.round(1, state, [0]))[0]
    assert {n: t.shape for n, t in ask.state.items()} == {n: t.shape for n, t in state.items()}
    answer = half.turn(ask, device_of(experiment, 0, tmp_path))
    assert answer.state.keys() == filled(state, 0.0).keys()
