from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dccl_flower.learning.fusion import (
    Copy,
    Fusion,
    average,
)
from dccl_flower.models.frozen import exchanged_state

CLOUD = Copy({"w": torch.tensor([1.0, 2.0, 3.0])}, 0)
DEVICES = [
    Copy({"w": torch.tensor([3.0, 6.0, 9.0])}, 1),
    Copy({"w": torch.tensor([7.0, 2.0, -1.0])}, 3),
]

vectors = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3).map(torch.tensor)
sides = st.lists(st.tuples(st.integers(0, 50), vectors), min_size=1, max_size=5).filter(
    lambda parts: any(count for count, _ in parts)
)
shares = st.floats(0, 1)


def as_copies(parts):
    return [Copy({"w": vector}, count) for count, vector in parts]


def norm_state(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).train()
    model(torch.randn(8, 2))
    return {name: tensor.detach() for name, tensor in exchanged_state(model).items()}


@pytest.mark.parametrize(
    ("cloud_weight", "expected"),
    [
        # devices by count: a quarter of (3, 6, 9) and three of (7, 2, -1) are (6, 3, 1.5)
        (0.0, [6.0, 3.0, 1.5]),
        (0.5, [3.5, 2.5, 2.25]),
        (0.8, [2.0, 2.2, 2.7]),
        (1.0, [1.0, 2.0, 3.0]),
    ],
)
def test_average_by_hand(cloud_weight, expected):
    fused = average(CLOUD, DEVICES, cloud_weight)
    torch.testing.assert_close(fused, {"w": torch.tensor(expected)})


@pytest.mark.parametrize("cloud_weight", [0.0, 0.5, 1.0])
def test_without_a_cloud_copy_the_devices_share_the_whole(cloud_weight):
    fused = average(None, DEVICES, cloud_weight)
    torch.testing.assert_close(fused, {"w": torch.tensor([6.0, 3.0, 1.5])})


def test_running_means_and_variances_take_part():
    cloud, device = norm_state(0), norm_state(1)
    fused = average(Copy(cloud, 0), [Copy(device, 5)], 0.25)
    assert list(fused) == list(cloud)
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        assert not torch.equal(cloud[name], device[name])
        torch.testing.assert_close(fused[name], 0.25 * cloud[name] + 0.75 * device[name])


def test_the_order_of_devices_does_not_matter():
    cloud, devices = Copy(norm_state(0), 0), [Copy(norm_state(n), n) for n in (1, 2, 3, 7)]
    forth = average(cloud, devices, 0.5)
    back = average(cloud, devices[::-1], 0.5)
    torch.testing.assert_close(forth, back, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(vectors, sides, shares, st.randoms(use_true_random=False))
def test_no_order_of_devices_matters(cloud, parts, share, random):
    shuffled = random.sample(parts, len(parts))
    forth = average(Copy({"w": cloud}, 0), as_copies(parts), share)
    back = average(Copy({"w": cloud}, 0), as_copies(shuffled), share)
    torch.testing.assert_close(forth, back, rtol=1e-6, atol=1e-6)


def test_large_terms_that_cancel_do_not_swallow_a_small_one():
    # In single precision 1e8 + 1 is 1e8, and the mean would be 0 in this order.
    values = [1e8, 1.0, -1e8]
    fused = average(None, [Copy({"w": torch.tensor([value])}, 1) for value in values], 0.0)
    assert fused["w"].item() == pytest.approx(1 / 3, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.none() | vectors, sides, shares)
def test_every_element_lies_between_those_averaged(cloud, parts, share):
    own = None if cloud is None else Copy({"w": cloud}, 0)
    fused = average(own, as_copies(parts), share)["w"]
    copies = torch.stack([v for _, v in parts] + ([] if cloud is None else [cloud]))
    assert (fused >= copies.amin(0) - 1e-5).all()
    assert (fused <= copies.amax(0) + 1e-5).all()


@settings(deadline=None, max_examples=50)
@given(vectors, st.lists(st.integers(1, 50), min_size=1, max_size=5), shares)
def test_equal_copies_are_left_as_they_are(vector, counts, share):
    devices = [Copy({"w": vector}, count) for count in counts]
    fused = average(Copy({"w": vector}, 0), devices, share)
    torch.testing.assert_close(fused["w"], vector, rtol=1e-6, atol=1e-6)


def test_a_device_without_samples_does_not_count():
    devices = [*DEVICES, Copy({"w": torch.full((3,), 1e6)}, 0)]
    torch.testing.assert_close(average(CLOUD, devices, 0.5), average(CLOUD, DEVICES, 0.5))


@pytest.mark.parametrize("cloud", [None, CLOUD])
@pytest.mark.parametrize("counts", [[], [0], [0, 0]])
def test_no_samples_at_all_is_an_error(cloud, counts):
    devices = [Copy({"w": torch.ones(3)}, count) for count in counts]
    with pytest.raises(ValueError, match="at least one device with samples"):
        average(cloud, devices, 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    device = Copy({"w": torch.tensor([3.0, 4.0], dtype=dtype)}, 2)
    cloud = Copy({"w": torch.tensor([1.0, 2.0], dtype=dtype)}, 0)
    fused = average(cloud, [device], 0.5)
    assert fused["w"].dtype == dtype
    assert fused["w"].tolist() == [2.0, 3.0]


def test_the_copies_averaged_are_not_changed():
    cloud = {"w": torch.tensor([1.0])}
    device = {"w": torch.tensor([3.0])}
    fused = average(Copy(cloud, 0), [Copy(device, 1)], 0.5)
    fused["w"].zero_()
    assert (cloud["w"].item(), device["w"].item()) == (1.0, 3.0)


def head_copy(value, bias, count, class_counts):
    """Return a copy whose weights are all its own value, its head's bias another."""
    state = {
        "body.weight": torch.full((3, 3), value),
        "head.weight": torch.full((3, 2), value),
        "head.bias": torch.full((3,), bias),
        "norm.running_mean": torch.full((3,), value),
    }
    return Copy(state, count, class_counts)


# Times the sides' weights 1/2, 1/4 and 1/4 the classes' shares are
# (3/8, 1/8, 0), (0, 1/4, 0) and (1/8, 1/8, 0): class 0 goes 3/4, 0, 1/4, class 1 goes
# 1/4, 1/2, 1/4, and class 2, which nobody holds, by the sides' weights alone.
HEAD_CLOUD = head_copy(4.0, 0.0, 0, torch.tensor([3, 1, 0]))
HEAD_DEVICES = [
    head_copy(8.0, 4.0, 2, torch.tensor([0, 2, 0])),
    head_copy(16.0, 8.0, 2, torch.tensor([1, 1, 0])),
]


CLASS_WISE = Fusion(class_wise_head=True, head="head")


def test_class_wise_head_by_hand():
    fused = CLASS_WISE(HEAD_CLOUD, HEAD_DEVICES, 0.5)
    assert fused["head.weight"].tolist() == [[7.0, 7.0], [9.0, 9.0], [8.0, 8.0]]
    assert fused["head.bias"].tolist() == [2.0, 4.0, 3.0]


def test_class_wise_head_without_a_cloud_copy_by_hand():
    # The devices' halves times their shares: class 0 is the second's, class 1 goes 2/3, 1/3.
    fused = CLASS_WISE(None, HEAD_DEVICES, 0.5)
    torch.testing.assert_close(fused["head.weight"][:, 0], torch.tensor([16.0, 32 / 3, 12.0]))
    torch.testing.assert_close(fused["head.bias"], torch.tensor([8.0, 16 / 3, 6.0]))


def test_class_wise_head_averages_all_but_the_head():
    fused, plain = (rule(HEAD_CLOUD, HEAD_DEVICES, 0.5) for rule in (Fusion(True), Fusion()))
    assert list(fused) == list(plain)
    for name in ("body.weight", "norm.running_mean"):
        assert torch.equal(fused[name], plain[name])
    assert fused["head.weight"].dtype == torch.float32


def test_class_wise_head_without_a_bias_is_the_same():
    copies = [
        Copy({"head.weight": copy.state["head.weight"]}, copy.count, copy.class_counts)
        for copy in (HEAD_CLOUD, *HEAD_DEVICES)
    ]
    fused = CLASS_WISE(copies[0], copies[1:], 0.5)
    assert list(fused) == ["head.weight"]
    assert fused["head.weight"][:, 0].tolist() == [7.0, 9.0, 8.0]


def test_the_class_wise_head_of_equal_proportions_is_the_plain_average():
    copies = [
        Copy({"w.weight": torch.rand(3, 2)}, count, count * torch.tensor([1, 2, 1]))
        for count in (5, 1, 3)
    ]
    rules = (Fusion(class_wise_head=True, head="w"), Fusion())
    fused, plain = (rule(copies[0], copies[1:], 0.3) for rule in rules)
    torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_class_wise_head_needs_the_class_counts_of_every_copy(silent):
    copies = [HEAD_CLOUD, *HEAD_DEVICES]
    copies[silent] = replace(copies[silent], class_counts=None)
    with pytest.raises(ValueError, match="needs class counts of every copy"):
        CLASS_WISE(copies[0], copies[1:], 0.5)


def test_a_device_without_samples_does_not_count_for_the_class_wise_head():
    devices = [*HEAD_DEVICES, head_copy(1e6, 1e6, 0, torch.zeros(3, dtype=torch.long))]
    fused = CLASS_WISE(HEAD_CLOUD, devices, 0.5)
    torch.testing.assert_close(fused, CLASS_WISE(HEAD_CLOUD, HEAD_DEVICES, 0.5))


POOLED = Fusion(pooled_statistics=True)


def side(value, mean, count):
    state = {"weight": value, "running_mean": mean, "running_var": 0.0, "bias": -value}
    return Copy({name: torch.tensor([number]) for name, number in state.items()}, count)


def test_pooled_statistics_count_how_far_the_sides_lie_apart():
    # Means -1 and 1 of equal weight: 0, and every input is 1 away from it.
    fused = POOLED(side(0.0, -1.0, 0), [side(2.0, 1.0, 5)], 0.5)
    assert (fused["running_mean"].item(), fused["running_var"].item()) == (0.0, 1.0)


def test_pooled_statistics_weigh_the_copies_as_the_average_does():
    # 1/4 to -1, 3/8 each to 1 and 3: mean 5/4, and squares 1/4 + 3/8 + 27/8 less 25/16.
    devices = [side(2.0, 1.0, 5), side(4.0, 3.0, 5)]
    fused = POOLED(side(0.0, -1.0, 0), devices, 0.25)
    assert (fused["running_mean"].item(), fused["running_var"].item()) == (1.25, 2.4375)
    alone = POOLED(None, devices, 0.25)
    assert (alone["running_mean"].item(), alone["running_var"].item()) == (2.0, 1.0)


@pytest.mark.parametrize("rule", [Fusion(), Fusion(class_wise_head=True)])
def test_pooling_changes_statistics_alone(rule):
    counts = torch.tensor([1, 2])
    copies = [
        Copy({**norm_state(seed), "head.weight": torch.rand(2, 3)}, seed, counts + seed)
        for seed in range(3)
    ]
    plain = rule(copies[0], copies[1:], 0.5)
    pooled = replace(rule, pooled_statistics=True)(copies[0], copies[1:], 0.5)
    assert list(pooled) == list(plain)
    changed = [name for name in plain if not torch.allclose(plain[name], pooled[name], atol=1e-6)]
    assert changed == ["1.running_var"]


def test_the_head_is_the_one_that_is_named_and_not_the_last_matrix():
    state = {"head.weight": torch.zeros(3, 2), "other.weight": torch.zeros(3, 2)}
    ones = {name: torch.ones(3, 2) for name in state}
    cloud, device = Copy(state, 0, torch.tensor([1, 1, 0])), Copy(ones, 4, torch.tensor([0, 0, 4]))
    fused = Fusion(class_wise_head=True, head="head")(cloud, [device], 0.5)
    assert fused["head.weight"][:, 0].tolist() == [0.0, 0.0, 1.0]
    assert fused["other.weight"][:, 0].tolist() == [0.5, 0.5, 0.5]


def test_only_a_class_wise_head_needs_class_counts():
    asking = [Fusion(a, b).needs_class_counts for a in (False, True) for b in (False, True)]
    assert asking == [False, False, True, True]
