from __future__ import annotations

from itertools import repeat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.fusion import Copy, average
from dccl_flower.learning.server_update import ControlVariates, steps_with_momentum

numbers = st.floats(-10, 10, width=32)


def state(*values):
    return {"weight": torch.tensor([list(values)])}


def plain(steps, lr, momentum=0.0):
    return LocalRecipe(steps, lr, momentum, weight_decay=0.0)


def values(corrections):
    return [correction["weight"].tolist() for correction in corrections]


def descend(start, loss, recipe, correction):
    """Return where controlled training takes a weight whose logit it is."""
    co, control = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(control.weight)
    co.load_state_dict(start)
    batch = torch.ones(2, 1), torch.zeros(2, dtype=torch.long)
    train_controlled(co, control, repeat(batch), loss, recipe, correction=correction)
    return {name: tensor.detach().clone() for name, tensor in co.state_dict().items()}


def parabola(curvature, optimum):
    return lambda logits, labels: (curvature / 2 * (logits - optimum) ** 2).mean()


@pytest.mark.parametrize(
    ("steps", "momentum", "expected"),
    [
        (1, 0.5, 1.0),
        (3, 0.5, 1 + 1.5 + 1.75),
        (4, 0.9, 1 + 1.9 + 2.71 + 3.439),
        (5, 0.0, 5.0),
        (3, 1.0, 1 + 2 + 3),
    ],
)
def test_steps_with_momentum_by_hand(steps, momentum, expected):
    assert steps_with_momentum(steps, momentum) == pytest.approx(expected)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_constant_slope_goes_as_far_as_steps_with_momentum_says(momentum):
    recipe = plain(6, 0.1, momentum)
    end = descend(state(0.0), lambda logits, labels: logits.mean(), recipe, {})
    assert end["weight"].item() == pytest.approx(-0.1 * steps_with_momentum(6, momentum))


def test_nothing_is_corrected_before_the_first_round():
    assert ControlVariates(0.5).corrections() == ({}, {})


def test_the_first_corrections_by_hand():
    # Two steps of 0.5 reach 1. The cloud went from 4 to 2, so its gradient was 2; the devices
    # ended at (1 * 4 + 3 * 0) / 4 = 1, so theirs was 3. They lie 1 apart.
    variates = ControlVariates(0.25)
    devices = [Copy(state(4.0), 1), Copy(state(0.0), 3)]
    variates.update(state(4.0), state(2.0), devices, plain(2, 0.5))
    assert values(variates.corrections()) == [[[0.75]], [[-0.25]]]


def test_what_was_added_is_taken_out_of_the_next_estimate():
    variates = ControlVariates(0.25)
    devices = [Copy(state(4.0), 1), Copy(state(0.0), 3)]
    variates.update(state(4.0), state(2.0), devices, plain(2, 0.5))
    # Of the cloud's fall by 1 the correction did 0.75, of the devices' rise by 1 it did 0.25:
    # gradients 0.25 and -0.75, which lie -1 apart.
    variates.update(state(1.0), state(0.0), [Copy(state(2.0), 9)], plain(2, 0.5))
    assert values(variates.corrections()) == [[[-0.75]], [[0.25]]]


def test_the_way_that_momentum_adds_is_not_taken_for_gradient():
    # On slopes 2 and 1 three steps of 0.1 go 0.1 * 4.25 times as far.
    variates = ControlVariates(0.5)
    device = Copy(state(-0.425), 1)
    variates.update(state(0.0), state(-0.85), [device], plain(3, 0.1, 0.5))
    for found, expected in zip(variates.corrections(), (-0.5, 0.5), strict=True):
        assert found["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_a_corrected_step_is_one_along_the_mean_gradient():
    # At 3 the cloud's w^2 / 2 has slope 3 and the devices' (w - 2)^2 has slope 2; half of each
    # is 2.5, and with a rate of 0.5 both sides then fall by 1.25.
    cloud, devices = parabola(1.0, 0.0), parabola(2.0, 2.0)
    start, recipe, variates = state(3.0), plain(1, 0.5), ControlVariates(0.5)
    first = [descend(start, loss, recipe, {})["weight"].item() for loss in (cloud, devices)]
    assert first == [1.5, 2.0]
    variates.update(start, state(first[0]), [Copy(state(first[1]), 1)], recipe)
    assert values(variates.corrections()) == [[[-0.5]], [[0.5]]]
    sides = zip((cloud, devices), variates.corrections(), strict=True)
    ends = [descend(start, loss, recipe, added)["weight"].item() for loss, added in sides]
    assert ends == [1.75, 1.75]


def settled(cloud_weight, momentum, corrected):
    """Return where many rounds end between w^2 / 2 on the cloud and 2 (w - 1)^2 on devices."""
    variates, recipe = ControlVariates(cloud_weight), plain(5, 0.1, momentum)
    current = state(3.0)
    for _ in range(300):
        for_cloud, for_devices = variates.corrections() if corrected else ({}, {})
        cloud = descend(current, parabola(1.0, 0.0), recipe, for_cloud)
        devices = [Copy(descend(current, parabola(4.0, 1.0), recipe, for_devices), 7)]
        fused = average(Copy(cloud, 0), devices, cloud_weight)
        variates.update(current, cloud, devices, recipe)
        current = fused
    return current["weight"].item()


@pytest.mark.parametrize("cloud_weight", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_corrected_sides_meet_at_the_optimum_of_the_weighted_sum(cloud_weight, momentum):
    # The slopes p w and (1 - p) 4 (w - 1) cancel at w = 4 (1 - p) / (p + 4 (1 - p)).
    pull = 4 * (1 - cloud_weight)
    found = settled(cloud_weight, momentum, corrected=True)
    assert found == pytest.approx(pull / (cloud_weight + pull), abs=1e-4)


def test_sides_left_alone_meet_elsewhere():
    # Five steps of 0.1 leave 0.9^5 of the way to 0 and 0.6^5 of the way to 1, so that
    # w = (0.59049 w + 1 + 0.07776 (w - 1)) / 2, which is not 0.8.
    found = settled(0.5, 0.0, corrected=False)
    assert found == pytest.approx((1 - 0.07776) / (2 - 0.59049 - 0.07776), abs=1e-4)
    assert abs(found - 0.8) > 0.1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=1, max_size=3), st.floats(0, 1))
def test_corrections_cancel_in_the_fused_state(rounds, cloud_weight):
    variates = ControlVariates(cloud_weight)
    for start0, start1, cloud0, cloud1, device0, device1 in rounds:
        devices = [Copy(state(device0, device1), 3)]
        variates.update(state(start0, start1), state(cloud0, cloud1), devices, plain(2, 0.5))
    for_cloud, for_devices = variates.corrections()
    total = cloud_weight * for_cloud["weight"] + (1 - cloud_weight) * for_devices["weight"]
    torch.testing.assert_close(total, torch.zeros(1, 2), rtol=0, atol=1e-4)


def test_batch_statistics_are_left_out():
    def with_norm(value):
        names = ("0.weight", "0.running_mean", "0.running_var")
        return {name: torch.tensor([value]) for name in names}

    variates = ControlVariates(0.5)
    for _ in range(2):
        variates.update(with_norm(3.0), with_norm(2.0), [Copy(with_norm(1.0), 1)], plain(1, 1.0))
        assert [list(correction) for correction in variates.corrections()] == [["0.weight"]] * 2
