from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dccl_flower.learning.batch_statistics import (
    is_statistic,
    measured_statistics,
    pooled_statistics,
    training_logits,
)
from dccl_flower.models.frozen import Frozen

numbers = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6)


def norm(mean=0.0, variance=1.0):
    """Return a batch norm over one feature that divides by the root of the variance alone."""
    layer = nn.BatchNorm1d(1, eps=0.0).eval()
    layer.running_mean.fill_(mean)
    layer.running_var.fill_(variance)
    return layer


def column(*values):
    return torch.tensor(values).view(-1, 1)


def statistics(layer):
    return layer.running_mean.tolist(), layer.running_var.tolist()


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_pre_hooks]


def held(mean, variance):
    return {
        "n.weight": torch.ones(len(mean)),
        "n.running_mean": torch.tensor(mean),
        "n.running_var": torch.tensor(variance),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("running_mean", True),
        ("features.1.running_mean", True),
        ("features.1.running_var", True),
        ("features.1.weight", False),
        ("features.1.num_batches_tracked", False),
        ("running_mean.weight", False),
    ],
)
def test_statistics_are_told_by_their_names(name, expected):
    assert is_statistic(name) is expected


def test_measured_statistics_are_those_of_all_inputs_by_hand():
    # 1, 3 and 8: mean 4, squares 9 + 1 + 16 = 26 over 3. A mean of batch means would be 5.
    model = nn.Sequential(norm())
    with measured_statistics(model):
        model(column(1.0, 3.0))
        model(column(8.0))
    assert statistics(model[0]) == ([4.0], pytest.approx([26 / 3]))


def test_measured_statistics_of_images_go_by_channel():
    # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9; 0, 0, 0, 4: mean 1, squares 1 + 1 + 1 + 9.
    model = nn.Sequential(nn.BatchNorm2d(2)).eval()
    first, second = [[[1.0, 2.0]], [[0.0, 0.0]]], [[[3.0, 6.0]], [[0.0, 4.0]]]
    with measured_statistics(model):
        model(torch.tensor([first, second]))
    assert statistics(model[0]) == ([3.0, 1.0], [3.5, 3.0])


def test_inside_the_block_norms_use_what_they_held():
    model = nn.Sequential(norm(mean=1.0, variance=4.0))
    with measured_statistics(model):
        assert [model(column(value)).item() for value in (5.0, 9.0)] == [2.0, 4.0]
        assert statistics(model[0]) == ([1.0], [4.0])
    # Of 5 and 9 the mean is 7 and the variance 4.
    assert model(column(9.0)).item() == 1.0


def test_a_norm_measures_what_reaches_it_through_the_norms_before_it():
    # (5 - 1) / 2 and (9 - 1) / 2 reach the second norm: mean 3, variance 1.
    model = nn.Sequential(norm(mean=1.0, variance=4.0), nn.Sequential(norm()))
    with measured_statistics(model):
        model(column(5.0, 9.0))
    assert statistics(model[1][0]) == ([3.0], [1.0])


def test_every_block_measures_afresh():
    model = nn.Sequential(norm())
    for values in ((100.0, 200.0), (2.0, 4.0)):
        with measured_statistics(model):
            model(column(*values))
    assert statistics(model[0]) == ([3.0], [1.0])


@pytest.mark.parametrize("part", [norm(), nn.Sequential(norm())])
def test_frozen_parts_are_left_alone(part):
    model = nn.Sequential(Frozen(part), norm())
    with measured_statistics(model):
        model(column(2.0, 4.0))
    frozen = part if isinstance(part, nn.BatchNorm1d) else part[0]
    assert statistics(frozen) == ([0.0], [1.0])
    assert statistics(model[1]) == ([3.0], [1.0])


def test_norms_without_input_are_left_alone():
    model = nn.Sequential(norm(), norm(mean=7.0, variance=2.0))
    with measured_statistics(model):
        model[0](column(2.0, 4.0))
    assert statistics(model[0]) == ([3.0], [1.0])
    assert statistics(model[1]) == ([7.0], [2.0])


def test_norms_that_hold_no_statistics_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False), norm())
    with measured_statistics(model):
        model(column(2.0, 4.0))
    assert model[0].running_mean is None


def test_the_hooks_are_gone_after_the_block():
    model = nn.Sequential(norm(), norm())
    with measured_statistics(model):
        assert len(hooks(model)) == 2
    assert hooks(model) == []


def test_nothing_is_written_on_an_exception_and_the_hooks_are_gone():
    model = nn.Sequential(norm())

    def fail_half_way():
        with measured_statistics(model):
            model(column(2.0, 4.0))
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert statistics(model[0]) == ([0.0], [1.0])
    assert hooks(model) == []


@pytest.mark.parametrize("mean", [1e4, 9e3, 0.0])
def test_a_small_variance_around_a_large_mean_is_not_lost(mean):
    # In single precision the square of 10000.5 is a multiple of 8, and the variance 1/4.
    model = nn.Sequential(norm(mean=mean))
    with measured_statistics(model):
        for _ in range(50):
            model(column(1e4 - 0.5, 1e4 + 0.5))
    assert statistics(model[0]) == ([1e4], [0.25])


def test_a_constant_input_has_no_variance():
    model = nn.Sequential(norm(mean=0.3))
    with measured_statistics(model):
        for _ in range(3):
            model(column(0.1, 0.1))
    assert statistics(model[0]) == (pytest.approx([0.1]), pytest.approx([0.0], abs=1e-8))
    assert model[0].running_var.item() >= 0


@settings(deadline=None, max_examples=50)
@given(st.lists(numbers, min_size=1, max_size=4), st.floats(-10, 10, width=32))
def test_the_cut_into_batches_does_not_matter(batches, mean):
    model = nn.Sequential(norm(mean=mean))
    with measured_statistics(model):
        for batch in batches:
            model(column(*batch))
    everything = torch.cat([torch.tensor(batch) for batch in batches]).double()
    found = torch.cat([model[0].running_mean, model[0].running_var]).double()
    expected = torch.stack([everything.mean(), everything.var(correction=0)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_pooled_statistics_of_two_points_by_hand():
    # All inputs are -1 or 1, half and half: each is 1 away from their mean.
    pooled = pooled_statistics([held([-1.0], [0.0]), held([1.0], [0.0])], [0.5, 0.5])
    assert pooled["n.running_mean"].tolist() == [0.0]
    assert pooled["n.running_var"].tolist() == [1.0]


def test_pooled_statistics_by_hand():
    # First feature: mean 1/4 * 0 + 3/4 * 4; variance 1/4 * (1 + 9) + 3/4 * (3 + 1).
    sides = [held([0.0, 2.0], [1.0, 5.0]), held([4.0, 2.0], [3.0, 1.0])]
    pooled = pooled_statistics(sides, [0.25, 0.75])
    assert pooled["n.running_mean"].tolist() == [3.0, 2.0]
    assert pooled["n.running_var"].tolist() == [5.5, 2.0]


def test_pooled_statistics_are_statistics_alone_of_the_same_dtype():
    pooled = pooled_statistics([held([-1.0], [0.0]), held([1.0], [0.0])], [0.5, 0.5])
    assert sorted(pooled) == ["n.running_mean", "n.running_var"]
    assert {tensor.dtype for tensor in pooled.values()} == {torch.float32}


def test_every_norm_is_pooled_for_itself():
    sides = [
        {"a.running_mean": m, "a.running_var": v, "b.running_mean": 2 * m, "b.running_var": v}
        for m, v in [(torch.tensor([-1.0]), torch.tensor([1.0])), (torch.ones(1), torch.zeros(1))]
    ]
    pooled = {name: t.item() for name, t in pooled_statistics(sides, [0.5, 0.5]).items()}
    assert pooled == {
        "a.running_mean": 0.0,
        "a.running_var": 1.5,
        "b.running_mean": 0.0,
        "b.running_var": 4.5,
    }


@settings(deadline=None, max_examples=50)
@given(st.lists(numbers, min_size=1, max_size=4))
def test_pooled_by_count_they_are_the_statistics_of_all_samples(sides):
    samples = [torch.tensor(side, dtype=torch.float64) for side in sides]
    everything = torch.cat(samples)
    pooled = pooled_statistics(
        [held([s.mean().item()], [s.var(correction=0).item()]) for s in samples],
        [len(s) / len(everything) for s in samples],
    )
    found = torch.cat([pooled["n.running_mean"], pooled["n.running_var"]]).double()
    expected = torch.stack([everything.mean(), everything.var(correction=0)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_one_image_trains_where_its_maps_have_several_values(size):
    norm = nn.Sequential(nn.BatchNorm2d(1))
    images = torch.arange(4.0 * size).view(size, 1, 2, 2)
    logits = training_logits(copy.deepcopy(norm), images)
    assert logits.requires_grad
    assert torch.equal(logits, norm(images))


def test_one_value_a_channel_gives_the_logits_of_eval_mode_and_changes_nothing():
    # The first norm has four values and would move its statistics; the second has one.
    model = nn.Sequential(nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1)).train()
    before = copy.deepcopy(model.state_dict())
    logits = training_logits(model, torch.arange(4.0).view(1, 1, 2, 2))
    assert logits.flatten().tolist() == pytest.approx([1.5], rel=1e-4)
    assert not logits.requires_grad
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_errors_of_a_model_reach_the_caller():
    with pytest.raises(RuntimeError, match="shapes"):
        training_logits(nn.Linear(3, 2), torch.zeros(1, 4))
