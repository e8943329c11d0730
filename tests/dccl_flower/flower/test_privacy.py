"""Exact values of what clips, what adds noise, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from local_grid import LocalGrid
from tiny import run_tiny, tiny_app, tiny_strategy

from dccl_flower.config import PrivacyConf
from dccl_flower.flower.privacy import (
    epsilon_of,
    noise_of_rounds,
    private_mods,
    privately,
)
from dccl_flower.image_config import TwoSidedRoundsConf as RoundsConf
from dccl_flower.seeds import derive_seed

NORM, DEVICES = 0.05, 5
ONE_ROUND = {"norm": "group", "rounds": RoundsConf(count=1, local_steps=4, lr=0.05, cloud_weight=0)}


def flat(state):
    return torch.cat([tensor.flatten() for tensor in state.values()]).numpy()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Where a round begins, and how far each device goes from there without privacy."""
    store = tmp_path_factory.mktemp("plain")
    strategy, _, _ = run_tiny(store, num_rounds=1, **ONE_ROUND)
    start = flat(tiny_strategy(**ONE_ROUND).method.initial_state())
    return start, [flat(reply.answer.state) - start for reply in strategy.replies]


def private_round(store, num_rounds=1, **settings):
    """Return strategy, grid and the state after the last round, as one vector."""
    conf = PrivacyConf(clipping_norm=NORM, **settings)
    strategy = tiny_strategy(**ONE_ROUND)
    strategy.is_private = True
    grid = LocalGrid(tiny_app(store, "group", private_mods(conf)), DEVICES)
    private = privately(strategy, conf, DEVICES, seed=7)
    result = private.start(grid, strategy.initial_arrays(), num_rounds=num_rounds)
    return private, grid, flat(strategy.state(result.arrays))


def clipped(update):
    return update * min(1, NORM / np.linalg.norm(update))


def noise(std, size, seed, *keys):
    return np.random.RandomState(derive_seed(seed, *keys) % 2**32).normal(0, std, size)


@pytest.mark.parametrize("side", ["client", "server"])
def test_fixed_clipping_averages_clipped_updates_alike_and_adds_the_seeds_noise(
    side, plain, tmp_path
):
    start, updates = plain
    assert all(np.linalg.norm(update) > NORM for update in updates)
    mean = start + np.mean([clipped(update) for update in updates], axis=0)
    added = noise(2.0 * NORM / DEVICES, start.shape, 7, "privacy", "round", 1)
    for multiplier, expected in ((0.0, mean), (2.0, mean + added)):
        settings = {"dp": f"{side}_fixed", "noise_multiplier": multiplier}
        _, _, after = private_round(tmp_path / str(multiplier), **settings)
        np.testing.assert_allclose(after, expected, atol=1e-6)


@pytest.mark.parametrize("side", ["client", "server"])
def test_adaptive_clipping_starts_at_the_norm_and_follows_what_was_clipped(side, plain, tmp_path):
    start, updates = plain
    settings = {"dp": f"{side}_adaptive", "noise_multiplier": 0.0}
    private, _, after = private_round(tmp_path, **settings)
    np.testing.assert_allclose(
        after, start + np.mean([clipped(update) for update in updates], axis=0), atol=1e-6
    )
    # All five were clipped: half of them should be.
    assert private.wrapped.clipping_norm == pytest.approx(NORM * math.exp(-0.2 * (1 - 0.5)))


def test_local_noise_is_on_what_leaves_a_device(plain, tmp_path):
    start, updates = plain
    settings = {"dp": "local", "epsilon": 4.0, "delta": 1e-3, "sensitivity": 0.2}
    _, grid, _ = private_round(tmp_path, **settings)
    std = 0.2 * math.sqrt(2 * math.log(1.25 / 1e-3)) / 4.0
    sent = {}
    for reply in grid.received:
        if reply.metadata.message_type == "train":
            (vector,) = reply.content["arrays"].to_numpy_ndarrays()
            sent[reply.content["metrics"]["device"]] = vector
    for device, update in enumerate(updates):
        own = noise(std, start.shape, 0, "privacy", "device", device, "round", 1)
        np.testing.assert_allclose(sent[device], start + clipped(update) + own, atol=1e-6)


def test_a_device_tells_neither_its_count_nor_its_scores(tmp_path):
    for dp in ("client_fixed", "client_adaptive", "server_fixed", "local"):
        _, grid, _ = private_round(tmp_path / dp, dp=dp, noise_multiplier=0.0)
        told = [m.content["metrics"] for m in grid.received if "arrays" in m.content]
        assert len(told) == DEVICES
        assert all(metrics["num-examples"] == 1 for metrics in told)
        known = {"num-examples", "device", "server-round", "peak-rss-mb", "norm_bit"}
        assert {name for metrics in told for name in metrics} <= known


def test_global_random_numbers_are_left_alone(tmp_path):
    np.random.seed(3)
    expected = np.random.RandomState(3).random()
    private_round(tmp_path, dp="server_fixed", noise_multiplier=1.0)
    assert np.random.random() == expected


def test_a_round_s_noise_is_held_against_what_a_device_can_change():
    fixed = PrivacyConf(dp="client_fixed", noise_multiplier=1.5)
    assert noise_of_rounds(fixed, 10, [10, 5, 0], share=1.0) == [1.5, 0.75]
    assert noise_of_rounds(fixed, 10, [10], share=0.5) == [3.0]
    # The count of who was clipped costs a part, so that both together are as given.
    adaptive = PrivacyConf(dp="server_adaptive", noise_multiplier=1.5)
    assert noise_of_rounds(adaptive, 40, [40], share=1.0) == pytest.approx([1.5])
    local = PrivacyConf(dp="local", clipping_norm=2.0, epsilon=1.0, delta=1e-5)
    assert noise_of_rounds(local, 10, [4], 0.5) == pytest.approx([math.sqrt(2 * math.log(1.25e5))])


def test_epsilon_is_that_of_renyi_accounting():
    pytest.importorskip("dp_accounting")
    rounds, sigma, delta = 10, 2.0, 1e-5
    orders = np.linspace(1.01, 200, 200_000)
    renyi = rounds * orders / (2 * sigma**2)
    bounds = renyi + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    assert epsilon_of([sigma] * rounds, delta) == pytest.approx(bounds.min(), rel=2e-3)
    assert epsilon_of([1.0, 0.0], delta) is None
