from __future__ import annotations

import pytest

from dccl_flower.simulations.arms.plots import plot_arms, plot_bytes
from dccl_flower.simulations.arms.report import (
    gap_closed,
    gap_curves,
    largest_swing,
    markdown,
    summarise_arms,
)


def result(accuracy, **more):
    sides = {"accuracy_cloud_classes": accuracy + 0.05, "accuracy_device_classes": accuracy / 2}
    return {"accuracy": accuracy, "seconds": 10.0, **sides, **more}


def rounds(*accuracies):
    return [
        {"accuracy": accuracy, "bytes_a_device": 1e6 * place}
        for place, accuracy in enumerate(accuracies, start=1)
    ]


CLOSE = {"logit_mse": 2.0, "agreement": 0.5, "kl": 0.25}
FIDELITY = {"cloud_classes": CLOSE, "device_classes": CLOSE}
RESULTS = {
    ("cloud-submodel", 0): result(0.6),
    ("cloud-submodel", 1): result(0.5),
    ("mimic", 0): result(0.4, mimic_fidelity=FIDELITY),
    ("central-m", 0): result(0.8, plug_in_gap=0.1),
    ("central-m", 1): result(0.7, plug_in_gap=0.3),
    ("strict", 0): result(0.7, rounds=rounds(0.6, 0.75, 0.7), bytes_a_device=3e6),
    ("strict", 1): result(0.7, rounds=rounds(0.5, 0.6, 0.7), bytes_a_device=3e6),
}


def test_gap_closed_is_the_share_of_the_way_to_central_m_of_the_same_seed():
    # seed 0: (0.7 - 0.6) / (0.8 - 0.6); seed 1: (0.7 - 0.5) / (0.7 - 0.5)
    assert gap_closed(0.7, 0, RESULTS) == pytest.approx(0.5)
    assert gap_closed(0.7, 1, RESULTS) == pytest.approx(1.0)
    assert gap_closed(0.7, 2, RESULTS) is None


def test_summary_gives_mean_and_sample_deviation_over_seeds():
    summary = summarise_arms(RESULTS)
    assert list(summary) == ["cloud-submodel", "mimic", "central-m", "strict"]
    gap = summary["strict"]["gap_closed"]
    assert gap["mean"] == pytest.approx(0.75)
    assert gap["std"] == pytest.approx(0.25 * 2**0.5)  # of 0.5 and 1.0
    assert summary["strict"]["swing"]["seeds"] == pytest.approx({0: 0.15, 1: 0.1})
    assert summary["central-m"]["gap_closed"]["mean"] == pytest.approx(1.0)
    assert summary["mimic"]["accuracy"]["std"] is None
    assert summary["cloud-submodel"]["plug_in_gap"]["mean"] is None


def test_swing_looks_at_the_last_ten_rounds_only():
    late = [0.5 + 0.01 * (place % 2) for place in range(10)]
    results = {("strict", 0): result(0.5, rounds=rounds(0.1, 0.9, *late))}
    assert summarise_arms(results)["strict"]["swing"]["mean"] == pytest.approx(0.01)


def test_one_round_has_no_swing():
    assert largest_swing([0.0, 0.9, *[0.5] * 9, 0.47]) == pytest.approx(0.03)
    assert largest_swing([0.5]) is None


def test_curves_average_gap_and_bytes_over_seeds_by_round():
    (points,) = gap_curves(RESULTS).values()
    # gaps of seed 0: 0, 0.75, 0.5; of seed 1: 0, 0.5, 1
    assert [gap for _, gap, _ in points] == pytest.approx([0, 0.625, 0.75])
    assert [sent for sent, _, _ in points] == pytest.approx([1e6, 2e6, 3e6])


def test_without_central_m_there_is_no_gap_and_no_curve():
    results = {key: value for key, value in RESULTS.items() if key[0] != "central-m"}
    assert gap_curves(results) == {}
    assert summarise_arms(results)["strict"]["gap_closed"]["mean"] is None


def test_markdown_holds_the_command_and_three_tables():
    text = markdown(summarise_arms(RESULTS), RESULTS, "Arms", "dccl arms digits")
    assert "```bash\ndccl arms digits\n```" in text
    assert "seeds 0, 1" in text
    assert "| DC-CCL at its best, strict | 70.0 ± 0.0 |" in text
    assert "0.75 ± 0.35" in text
    # the mean gap passes 0.5 after 2 MB and never reaches 0.8
    assert "| DC-CCL at its best, strict | 2.00 | - | - | 3.00 | 0.75 |" in text
    assert "| cloud | 2.00 | 50.0 | 0.25 |" in text


def test_plots_are_written(tmp_path):
    plot_arms(summarise_arms(RESULTS), "Arms", tmp_path / "arms.png")
    plot_bytes(gap_curves(RESULTS), "Bytes", tmp_path / "bytes.png")
    for name in ("arms.png", "bytes.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
