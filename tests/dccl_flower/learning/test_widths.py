from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from dccl_flower.learning.fusion import Copy, Fusion, average
from dccl_flower.learning.widths import Widths, leading, level
from dccl_flower.models.frozen import exchanged_state

WIDE = {"w": torch.arange(6.0).view(2, 3), "b": torch.tensor([10.0, 20.0])}


def narrow_copy(count, value):
    return Copy({"w": torch.full((1, 2), value), "b": torch.full((1,), value)}, count)


def wide_copy(count, value):
    return Copy({"w": torch.full((2, 3), value), "b": torch.full((2,), value)}, count)


def test_a_narrow_state_is_the_leading_block_of_each_tensor():
    like = {"w": torch.empty(1, 2), "b": torch.empty(1), "unasked": torch.empty(9)}
    part = leading(WIDE, like)
    assert part["w"].tolist() == [[0.0, 1.0]]
    assert part["b"].tolist() == [10.0]


def test_a_part_holds_the_leading_channels_of_its_share():
    state = {n: t.clone() for n, t in exchanged_state(tiny_model(3)).items()}
    widths = Widths(tiny_model(3), torch.zeros(2, 2), {1.0, 0.5})
    part = widths.part_of(state, 0.5)
    assert torch.equal(part["0.weight"], state["0.weight"][:3])
    assert torch.equal(part["1.running_var"], state["1.running_var"][:3])
    assert torch.equal(part["3.weight"], state["3.weight"][:, :3])
    assert torch.equal(part["3.bias"], state["3.bias"])
    whole = widths.part_of(state, 1.0)
    assert all(torch.equal(whole[name], tensor) for name, tensor in state.items())


def test_entries_are_averaged_over_those_that_hold_them():
    # (1·8 + 3·4) / 4 = 5 where both hold an entry, the wide one's 4 elsewhere
    levelled = level([narrow_copy(1, 8.0), wide_copy(3, 4.0)], WIDE)
    fused = average(None, levelled, 0.0)
    assert fused["w"].tolist() == [[5.0, 5.0, 4.0], [4.0, 4.0, 4.0]]
    assert fused["b"].tolist() == [5.0, 4.0]


def test_what_nobody_holds_stays_as_it_is_otherwise():
    fused = average(None, level([narrow_copy(2, 8.0), narrow_copy(2, 4.0)], WIDE), 0.0)
    assert fused["w"].tolist() == [[6.0, 6.0, 2.0], [3.0, 4.0, 5.0]]
    assert fused["b"].tolist() == [6.0, 20.0]


def test_with_the_cloud_what_no_device_holds_is_the_clouds():
    cloud = Copy(WIDE, 0)
    fused = average(cloud, level([narrow_copy(2, 8.0)], cloud.state), 0.5)
    assert fused["w"].tolist() == [[4.0, 4.5, 2.0], [3.0, 4.0, 5.0]]


def test_copies_of_one_width_are_left_alone():
    copies = [wide_copy(1, 2.0), wide_copy(5, 3.0)]
    assert all(a is b for a, b in zip(level(copies, WIDE), copies, strict=True))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(-5, 5)), min_size=1, max_size=4))
def test_the_levelled_mean_is_that_over_holders(parts):
    narrow = [narrow_copy(count, value) for count, value in parts]
    wide = wide_copy(4, 1.0)
    fused = average(None, level([*narrow, wide], WIDE), 0.0)
    total = 4.0 + sum(count * value for count, value in parts)
    both = total / (4 + sum(count for count, _ in parts))
    assert fused["b"].tolist() == pytest.approx([both, 1.0], abs=1e-6)


def test_pooled_statistics_of_channels_that_few_hold_are_those_of_the_few():
    def copy(count, mean, var):
        return Copy(
            {"n.running_mean": torch.tensor(mean), "n.running_var": torch.tensor(var)}, count
        )

    wide, narrow = copy(1, [0.0, 7.0], [1.0, 2.0]), copy(1, [2.0], [1.0])
    fused = Fusion(pooled_statistics=True)(None, level([wide, narrow], wide.state), 0.0)
    assert fused["n.running_mean"].tolist() == [1.0, 7.0]
    assert fused["n.running_var"].tolist() == [2.0, 2.0]  # 1 within and (2 - 0)² / 4 between
