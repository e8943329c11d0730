from __future__ import annotations

import pytest
from fake_runs import result_of

from dccl_flower.simulations.arms.arms import load_arms
from dccl_flower.simulations.arms.sweep import Sweep
from dccl_flower.simulations.arms.sweep_report import SweepComparison, markdown

TABLE = load_arms("dc_ccl")
SWEEP = Sweep("exemplars", ["", "100", "200"], ["strict", "mimic"], [0, 1])
RESULTS = {
    ("", "strict", 0): result_of(accuracy=0.6, plug_in_gap=0.1),
    ("", "strict", 1): result_of(accuracy=0.8, plug_in_gap=0.1),
    ("", "mimic", 0): result_of(accuracy=0.4),
    ("200", "strict", 1): result_of(accuracy=0.7, plug_in_gap=0.1),
}


def test_points_are_means_and_deviations_of_the_first_score():
    comparison = SweepComparison(TABLE, SWEEP, RESULTS)
    points = comparison.points("strict")
    assert list(points) == ["", "200"]
    assert points[""] == pytest.approx((0.7, 0.02**0.5))
    assert points["200"] == (0.7, 0.0)
    assert comparison.points("mimic") == {"": (0.4, 0.0)}


def test_a_table_by_value_and_arm_of_what_was_measured():
    text = markdown(SweepComparison(TABLE, SWEEP, RESULTS), "Sweep", "dccl sweep digits")
    assert "```bash\ndccl sweep digits\n```" in text
    assert "mean ± standard deviation of seeds 0, 1" in text
    *_, head, rule, first, second, third = text.strip().splitlines()
    assert head == "| `exemplars` | arm | accuracy, % | plug in gap, % | seconds |"
    assert rule == "|---|---|---:|---:|---:|"
    assert first == "| null | mimic alone | 40.0 | - | 2 |"
    assert second == ("| null | DC-CCL, strict | 70.0 ± 14.1 | 10.0 ± 0.0 | 2 ± 0 |")
    assert third == "| 200 | DC-CCL, strict | 70.0 | 10.0 | 2 |"


def test_gaps_close_between_the_ends_at_the_same_value():
    sweep = Sweep("rounds.lr", ["1", "2"], ["cloud-submodel", "strict", "central-m"], [0])
    scores = {"cloud-submodel": (0.4, 0.5), "strict": (0.5, 0.6), "central-m": (0.8, 0.9)}
    results = {
        (value, arm, 0): result_of(accuracy=each[place])
        for place, value in enumerate(sweep.values)
        for arm, each in scores.items()
    }
    summaries = SweepComparison(TABLE, sweep, results).summaries
    for value in sweep.values:
        assert summaries[value]["strict"]["gap_closed"]["mean"] == pytest.approx(0.25)


def test_values_that_differ_in_their_first_score_have_rows_and_no_point():
    assert SweepComparison(TABLE, SWEEP, RESULTS).differing == []
    results = {**RESULTS, ("100", "strict", 0): result_of(ndcg=0.3)}
    comparison = SweepComparison(TABLE, SWEEP, results)
    (line,) = comparison.differing
    assert line.startswith("strict, exemplars=100: its first score is ndcg and that of strict, exe")
    assert list(comparison.points("strict")) == ["", "200"]
    text = markdown(comparison, "Sweep", "dccl sweep digits")
    assert "| 100 | DC-CCL, strict | - | - | 30.0 | 2 |" in text
