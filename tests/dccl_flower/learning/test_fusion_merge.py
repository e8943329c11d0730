"""Copies of devices merged before they are fused: see test_fusion.py for the rules themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.learning.fusion import Copy, Fusion, average, merge

FUSIONS = [Fusion(head, pooled) for head in (False, True) for pooled in (False, True)]


def copy_of(value, count, classes):
    """Return a copy whose entries are all of one value."""
    shapes = {
        "body.weight": (2, 2),
        "norm.running_mean": (2,),
        "norm.running_var": (2,),
        "head.weight": (3, 2),
        "head.bias": (3,),
    }
    state = {name: torch.full(shape, value) for name, shape in shapes.items()}
    return Copy(state, count, torch.tensor(classes))


COPIES = [copy_of(4.0, 2, [0, 2, 0]), copy_of(8.0, 6, [3, 3, 0])]


def test_merging_by_hand():
    # A quarter of 4 and three of 8; in a mixture their variance is that and 1/4 * 9 + 3/4 * 1.
    merged, pooled = (merge(COPIES, rule) for rule in FUSIONS[:2])
    for copy, variance in ((merged, 7.0), (pooled, 10.0)):
        expected = {n: torch.full(t.shape, 7.0).double() for n, t in COPIES[0].state.items()}
        expected["norm.running_var"].fill_(variance)
        torch.testing.assert_close(copy.state, expected)
        assert (copy.count, copy.class_counts.tolist()) == (8, [3.0, 5.0, 0.0])


def test_merging_class_wise_by_hand():
    # Class 0 is the second's alone, and class 1 goes by two samples and three.
    merged = merge(COPIES, Fusion(class_wise_head=True))
    expected = torch.tensor([8.0, 6.4, 7.0], dtype=torch.float64)
    torch.testing.assert_close(merged.state["head.bias"], expected)
    assert merged.state["body.weight"].unique().tolist() == [7.0]


def test_merged_class_counts_weigh_classes_by_the_samples_trained_on():
    # Ten samples of which class 0 makes up a quarter, and two which are all of it.
    copies = [copy_of(1.0, 10, [1, 3, 0]), copy_of(1.0, 2, [5, 0, 0])]
    assert merge(copies, average).class_counts.tolist() == [4.5, 7.5, 0.0]


def test_a_merged_copy_of_half_a_sample_weighs_half_a_sample():
    # Class 0 goes by one sample and a half one, also where the half one was merged before.
    whole, half = copy_of(4.0, 1, [1, 0, 0]), copy_of(1.0, 0.5, [1, 0, 0])
    rule = Fusion(class_wise_head=True)
    for copies in ([whole, half], [whole, merge([half], rule)]):
        assert rule(None, copies, 0.0)["head.bias"].tolist() == [3.0, 3.0, 3.0]
    assert merge([merge([half], rule)], rule).class_counts.tolist() == [0.5, 0.0, 0.0]


def test_merging_one_copy_changes_no_bit():
    state = {name: tensor / 7 for name, tensor in COPIES[0].state.items()}
    for rule in FUSIONS:
        merged = merge([Copy(state, 7, torch.tensor([3, 4, 0]))], rule)
        assert (merged.count, merged.class_counts.tolist()) == (7, [3.0, 4.0, 0.0])
        for name, tensor in state.items():
            assert torch.equal(merged.state[name], tensor.double()), name


def test_merging_where_one_is_silent_about_its_classes_tells_none():
    copies = [COPIES[0], replace(COPIES[1], class_counts=None)]
    assert merge(copies, average).class_counts is None
    with pytest.raises(ValueError, match="needs class counts of every copy"):
        merge(copies, Fusion(class_wise_head=True))


@pytest.mark.parametrize("counts", [[0], [0, 0]])
def test_merging_needs_samples(counts):
    with pytest.raises(ValueError, match="at least one device with samples"):
        merge([copy_of(1.0, count, [0, 0, 0]) for count in counts], average)


def test_merging_changes_no_copy():
    merged = merge(COPIES[:1], Fusion(class_wise_head=True))
    for tensor in merged.state.values():
        tensor.zero_()
    assert all(tensor.unique().tolist() == [4.0] for tensor in COPIES[0].state.values())


def test_a_rule_may_take_merged_copies_beside_others():
    # Float32 beside float64, as where some devices have a message of their own.
    merged = merge(COPIES, average)
    fused = average(None, [copy_of(1.0, 8, [8, 0, 0]), merged], 0.0)
    assert fused["body.weight"].dtype == torch.float32
    assert fused["body.weight"].unique().tolist() == [4.0]


numbers = st.floats(-10, 10)
class_numbers = st.lists(st.integers(0, 9), min_size=3, max_size=3)


def doubles(count):
    return st.lists(numbers, min_size=count, max_size=count).map(
        lambda values: torch.tensor(values, dtype=torch.float64)
    )


@st.composite
def copies_of(draw, has_samples=True):
    """Draw a copy of a tiny net; its samples are as many as it says of its classes, or a half."""
    classes = torch.tensor(draw(class_numbers.filter(any) if has_samples else class_numbers))
    count = draw(st.sampled_from([1, 0.5])) * classes.sum().item() if has_samples else 0
    state = {
        "body.weight": draw(doubles(4)).view(2, 2),
        "norm.running_mean": draw(doubles(2)),
        "norm.running_var": draw(doubles(2)).abs(),
        "head.weight": draw(doubles(6)).view(3, 2),
        "head.bias": draw(doubles(3)),
    }
    return Copy(state, count, classes)


@st.composite
def grouped_copies(draw):
    """Draw one to four groups, each with a copy that has samples, and some without any."""
    groups = []
    for _ in range(draw(st.integers(1, 4))):
        group = draw(st.lists(copies_of(), min_size=1, max_size=4))
        group += draw(st.lists(copies_of(has_samples=False), max_size=2))
        groups.append(draw(st.permutations(group)))
    return groups


@pytest.mark.parametrize("rule", FUSIONS)
@settings(deadline=None, max_examples=25)
@given(grouped_copies(), st.none() | copies_of(has_samples=False), st.floats(0, 1), st.booleans())
def test_fusing_merged_groups_is_fusing_one_by_one(rule, groups, cloud, share, in_stages):
    merged = [merge(group, rule) for group in groups]
    if in_stages:  # as a worker does that has many devices
        merged = [merge([merge(merged[:-1], rule), merged[-1]], rule)] if merged[1:] else merged
    one_by_one = [copy for group in groups for copy in group]
    torch.testing.assert_close(
        rule(cloud, merged, share), rule(cloud, one_by_one, share), rtol=1e-12, atol=1e-12
    )
    assert sum(copy.count for copy in merged) == sum(copy.count for copy in one_by_one)
    expected = sum(
        copy.count * copy.class_counts / copy.class_counts.sum().clamp(min=1) for copy in one_by_one
    )
    torch.testing.assert_close(
        sum(copy.class_counts for copy in merged), expected.double(), rtol=1e-6, atol=1e-6
    )
