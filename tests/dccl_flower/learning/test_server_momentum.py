from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.learning.server_update import ServerMomentum

numbers = st.floats(-10, 10, width=32)


def state(weight, mean=0.0):
    names = {"0.weight": weight, "1.running_mean": mean, "1.running_var": mean, "2.bias": -weight}
    return {name: torch.tensor([value]) for name, value in names.items()}


def numbers_of(found):
    return {name: tensor.item() for name, tensor in found.items()}


def test_three_rounds_by_hand():
    # Changes 1, 2 and -0.5; half of the one before each comes on top: 1, 2.5 and 0.75.
    server = ServerMomentum(0.5)
    for before, fused, after in [(0.0, 1.0, 1.0), (1.0, 3.0, 3.5), (3.5, 3.0, 4.25)]:
        found = numbers_of(server.step(state(before), state(fused)))
        assert (found["0.weight"], found["2.bias"]) == (after, -after)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4))
def test_without_momentum_the_fused_state_is_next(rounds):
    server = ServerMomentum(0.0)
    for before, fused in rounds:
        found = server.step(state(before), state(fused))
        torch.testing.assert_close(found, state(fused), rtol=0, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_statistics_are_taken_as_they_are(momentum):
    server = ServerMomentum(momentum)
    for mean in (1.0, 5.0, 2.0):
        found = numbers_of(server.step(state(0.0, mean=0.0), state(1.0, mean)))
        assert (found["1.running_mean"], found["1.running_var"]) == (mean, mean)


def test_names_keep_their_order():
    server = ServerMomentum(0.5)
    for _ in range(2):
        assert list(server.step(state(0.0), state(1.0))) == list(state(0.0))


def test_the_states_passed_in_are_not_changed():
    server = ServerMomentum(0.5)
    before, fused = state(0.0), state(1.0)
    server.step(before, fused)
    server.step(before, fused)
    assert numbers_of(before) == numbers_of(state(0.0))
    assert numbers_of(fused) == numbers_of(state(1.0))


def test_what_becomes_of_the_state_returned_does_not_reach_the_next_step():
    server = ServerMomentum(0.5)
    server.step(state(0.0), state(1.0))["0.weight"].fill_(99.0)
    assert server.step(state(1.0), state(2.0))["0.weight"].item() == 2.5
