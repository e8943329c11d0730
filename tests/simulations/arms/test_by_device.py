from __future__ import annotations

import pytest

from dccl_flower.simulations.arms.arms import Arm, ArmTable
from dccl_flower.simulations.arms.by_device import (
    ByDevice,
    difference_table,
    group_table,
    plot_groups,
    sections,
)

TABLE = ArmTable({"low": Arm("low arm"), "high": Arm("high arm"), "other": Arm("other")})


def devices(*rows):
    return {"devices": {"grouped_by": "decile", "rows": [list(row) for row in rows]}}


RESULTS = {
    # device, value, weight, group
    ("low", 0): devices((0, 0.5, 1, 1), (1, 0.7, 3, 1), (2, 0.2, 1, 2), (3, None, 5, 2)),
    ("low", 1): devices((0, 0.5, 1, 1), (1, 0.5, 1, 2)),
    ("high", 0): devices((0, 0.6, 1, 1), (1, 0.9, 3, 1), (2, 0.5, 1, 2), (3, 0.1, 5, 2)),
    ("other", 0): {},
}


@pytest.fixture
def found():
    return ByDevice(TABLE, RESULTS)


def test_a_group_s_mean_is_weighted_and_goes_over_seeds(found):
    # seed 0: (0.5 + 3 * 0.7) / 4; seed 1: 0.5
    assert found.of_group("low", 1)["mean"] == pytest.approx((0.65 + 0.5) / 2)
    # device 3 has no score: seed 0 is device 2 alone
    assert found.of_group("low", 2)["mean"] == pytest.approx((0.2 + 0.5) / 2)
    assert found.of_group("high", 2)["mean"] == pytest.approx((0.5 + 5 * 0.1) / 6)


def test_arms_without_devices_are_left_out_and_devices_without_a_score_counted(found):
    assert found.arms == ["low", "high"]
    assert found.unscored == (1, 4)
    assert not ByDevice(TABLE, {("other", 0): {}})


def test_a_difference_is_that_of_devices_that_both_have_a_score_of(found):
    mean, low, high = found.difference("high", "low")
    assert mean == pytest.approx((0.1 + 3 * 0.2 + 0.3) / 5)
    assert 0.099 <= low <= mean <= high <= 0.301
    back = found.difference("low", "high")
    assert back[0] == pytest.approx(-mean)
    assert found.difference("high", "low") == (mean, low, high)


def test_arms_without_a_device_in_common_have_no_difference():
    apart = {("low", 0): devices((0, 0.5, 1, 1)), ("high", 0): devices((1, 0.5, 1, 1))}
    assert ByDevice(TABLE, apart).difference("low", "high") is None
    seeds_apart = {("low", 0): devices((0, 0.5, 1, 1)), ("high", 1): devices((0, 0.5, 1, 1))}
    assert ByDevice(TABLE, seeds_apart).difference("low", "high") is None


def test_the_report_has_groups_and_differences(found):
    assert group_table(found).splitlines()[0] == "| decile | 1 | 2 |"
    assert "| low arm | 57.5 ± 10.6 | 35.0 ± 21.2 |" in group_table(found)
    lines = difference_table(found).splitlines()
    assert lines[0] == "| points above | low arm | high arm |"
    assert "+20.0 [" in lines[3]
    told = sections(found)
    assert told[0].startswith("By decile, in %; 1 of 4 devices have no score")
    assert "95%" in told[2]


def test_groups_are_drawn(found, tmp_path):
    plot_groups(found, "gauc", "title", tmp_path / "groups.png")
    assert (tmp_path / "groups.png").stat().st_size > 1000
