from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dccl_flower.learning.fusion import FUSIONS, average
from dccl_flower.models.frozen import exchanged_state

CLOUD = {"w": torch.tensor([1.0, 2.0, 3.0])}
DEVICES = [
    (1, {"w": torch.tensor([3.0, 6.0, 9.0])}),
    (3, {"w": torch.tensor([7.0, 2.0, -1.0])}),
]

vectors = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3).map(torch.tensor)
sides = st.lists(st.tuples(st.integers(0, 50), vectors), min_size=1, max_size=5).filter(
    lambda parts: any(count for count, _ in parts)
)
shares = st.floats(0, 1)


def as_states(parts):
    return [(count, {"w": vector}) for count, vector in parts]


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
    fused = average(cloud, [(5, device)], 0.25)
    assert list(fused) == list(cloud)
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        assert not torch.equal(cloud[name], device[name])
        torch.testing.assert_close(fused[name], 0.25 * cloud[name] + 0.75 * device[name])


def test_the_order_of_devices_does_not_matter():
    devices = [(count, norm_state(count)) for count in (1, 2, 3, 7)]
    forth = average(norm_state(0), devices, 0.5)
    back = average(norm_state(0), devices[::-1], 0.5)
    torch.testing.assert_close(forth, back, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(vectors, sides, shares, st.randoms(use_true_random=False))
def test_no_order_of_devices_matters(cloud, parts, share, random):
    shuffled = random.sample(parts, len(parts))
    forth = average({"w": cloud}, as_states(parts), share)
    back = average({"w": cloud}, as_states(shuffled), share)
    torch.testing.assert_close(forth, back, rtol=1e-6, atol=1e-6)


def test_large_terms_that_cancel_do_not_swallow_a_small_one():
    # In single precision 1e8 + 1 is 1e8, and the mean would be 0 in this order.
    values = [1e8, 1.0, -1e8]
    fused = average(None, [(1, {"w": torch.tensor([value])}) for value in values], 0.0)
    assert fused["w"].item() == pytest.approx(1 / 3, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.none() | vectors, sides, shares)
def test_every_element_lies_between_those_averaged(cloud, parts, share):
    own = None if cloud is None else {"w": cloud}
    fused = average(own, as_states(parts), share)["w"]
    copies = torch.stack([v for _, v in parts] + ([] if cloud is None else [cloud]))
    assert (fused >= copies.amin(0) - 1e-5).all()
    assert (fused <= copies.amax(0) + 1e-5).all()


@settings(deadline=None, max_examples=50)
@given(vectors, st.lists(st.integers(1, 50), min_size=1, max_size=5), shares)
def test_equal_copies_are_left_as_they_are(vector, counts, share):
    fused = average({"w": vector}, [(count, {"w": vector}) for count in counts], share)
    torch.testing.assert_close(fused["w"], vector, rtol=1e-6, atol=1e-6)


def test_a_device_without_samples_does_not_count():
    devices = [*DEVICES, (0, {"w": torch.full((3,), 1e6)})]
    torch.testing.assert_close(average(CLOUD, devices, 0.5), average(CLOUD, DEVICES, 0.5))


@pytest.mark.parametrize("cloud", [None, CLOUD])
@pytest.mark.parametrize("counts", [[], [0], [0, 0]])
def test_no_samples_at_all_is_an_error(cloud, counts):
    devices = [(count, {"w": torch.ones(3)}) for count in counts]
    with pytest.raises(ValueError, match="at least one device with samples"):
        average(cloud, devices, 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    device = {"w": torch.tensor([3.0, 4.0], dtype=dtype)}
    fused = average({"w": torch.tensor([1.0, 2.0], dtype=dtype)}, [(2, device)], 0.5)
    assert fused["w"].dtype == dtype
    assert fused["w"].tolist() == [2.0, 3.0]


def test_the_copies_averaged_are_not_changed():
    cloud = {"w": torch.tensor([1.0])}
    device = {"w": torch.tensor([3.0])}
    fused = average(cloud, [(1, device)], 0.5)
    fused["w"].zero_()
    assert (cloud["w"].item(), device["w"].item()) == (1.0, 3.0)


def test_the_published_rule_goes_by_the_name_average():
    assert FUSIONS["average"] is average
