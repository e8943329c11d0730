from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.seeds import derive_seed, isolated_rng, numpy_generator, torch_generator

KEYS = st.lists(st.integers(0, 1000) | st.sampled_from(["train", "device", "round"]), max_size=4)


def numpy_draw(*keys):
    return numpy_generator(*keys).integers(2**62)


def torch_draw(*keys):
    return torch.randint(2**62, (1,), generator=torch_generator(*keys)).item()


@settings(deadline=None)
@given(st.integers(0, 2**62), KEYS)
def test_a_seed_is_the_same_every_time_and_fits_63_bits(seed, keys):
    derived = derive_seed(seed, *keys)
    assert derived == derive_seed(seed, *keys)
    assert 0 <= derived < 2**63


@settings(deadline=None)
@given(st.integers(0, 2**62), KEYS, st.integers(0, 2**62), KEYS)
def test_different_keys_give_different_seeds(seed, keys, other_seed, other_keys):
    same = (seed, *keys) == (other_seed, *other_keys)
    assert (derive_seed(seed, *keys) == derive_seed(other_seed, *other_keys)) == same


def test_derived_seeds_never_change_between_versions():
    # The first 63 bits of sha256("(0, 'device', 3)"): results of old runs can be had again.
    assert derive_seed(0, "device", 3) == 3394629592511641254


@pytest.mark.parametrize(
    ("keys", "others"),
    [
        ((0, "device", 1, "round", 2), (0, "device", 2, "round", 1)),
        ((0, "a", "b"), (0, "b", "a")),
        ((1, 23), (12, 3)),
        ((0, "device", 1), (0, "device", 11)),
        ((0,), (0, "train")),
    ],
)
def test_order_and_borders_of_keys_count(keys, others):
    assert derive_seed(*keys) != derive_seed(*others)


@pytest.mark.parametrize("draw", [numpy_draw, torch_draw])
def test_draws_do_not_depend_on_the_order_of_use(draw):
    keys = [(0, "train"), (0, "device", 1), (0, "device", 2), (1, "train")]
    forwards = {key: draw(*key) for key in keys}
    backwards = {key: draw(*key) for key in reversed(keys)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(keys)


@pytest.mark.parametrize("draw", [numpy_draw, torch_draw])
def test_keyed_generators_leave_the_global_ones_alone(draw):
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    draw(5, "anything")
    assert (torch.rand(1).item(), np.random.rand()) == expected


def test_isolated_rng_restores_the_global_state():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = torch.rand(2)
    with isolated_rng(0, "init"):
        torch.rand(100)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


def test_isolated_rng_restores_the_global_state_after_an_error():
    state = torch.random.get_rng_state()
    with pytest.raises(IndexError), isolated_rng(0, "init"):
        torch.rand(1)[5]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_isolated_rng_is_reproducible_whatever_the_global_state():
    with isolated_rng(0, "init"):
        first = torch.rand(3)
    torch.rand(7)
    with isolated_rng(0, "init"):
        again = torch.rand(3)
    with isolated_rng(0, "other"):
        other = torch.rand(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_isolated_rng_is_reproducible_when_nested():
    with isolated_rng(0, "outer"):
        expected = torch.rand(2)
    with isolated_rng(0, "outer"):
        first = torch.rand(1)
        with isolated_rng(0, "inner"):
            torch.rand(5)
        second = torch.rand(1)
    assert torch.equal(torch.cat([first, second]), expected)


def test_threads_take_turns():
    second_is_in, first_is_out = Event(), Event()

    def draw(key, pause):
        with isolated_rng(0, key):
            first = torch.rand(1)
            pause()
            return torch.cat([first, torch.rand(1)])

    def pause_second():
        second_is_in.set()
        first_is_out.wait(0.1)

    expected = [draw(key, pause=lambda: None) for key in ("one", "two")]
    with ThreadPoolExecutor() as pool:
        futures = []

        def pause_first():
            futures.append(pool.submit(draw, "two", pause_second))
            second_is_in.wait(0.1)

        assert torch.equal(draw("one", pause_first), expected[0])
        first_is_out.set()
        assert torch.equal(futures[0].result(), expected[1])
