from __future__ import annotations

import pytest

from dccl_flower.simulations.arms import plots
from dccl_flower.simulations.arms.arms import load_arms
from dccl_flower.simulations.arms.plots import plot_arms, plot_bytes, plot_epsilon
from dccl_flower.simulations.arms.report import Comparison, largest_swing, markdown

TABLE = load_arms("dc_ccl")


def result(accuracy, *, gap=None, **more):
    scores = {"accuracy": accuracy, "accuracy_device_classes": accuracy / 2}
    scores |= {} if gap is None else {"plug_in_gap": gap}
    plain = {"seconds": 10.0, "rounds": [], "references": {}, "versions": {}}
    return {"scores": scores, **plain, **more}


def rounds(*accuracies):
    return [
        {"accuracy": accuracy, "bytes_a_device": 1e6 * place}
        for place, accuracy in enumerate(accuracies, start=1)
    ]


REFERENCES = {"mimic": {"accuracy": 0.4, "logit_mse": 2.0}}
RESULTS = {
    ("cloud-submodel", 0): result(0.6),
    ("cloud-submodel", 1): result(0.5),
    ("mimic", 0): result(0.4, references=REFERENCES),
    ("central-m", 0): result(0.8, gap=0.1),
    ("central-m", 1): result(0.7, gap=0.3),
    ("strict", 0): result(0.7, rounds=rounds(0.6, 0.75, 0.7), bytes_a_device=3e6),
    ("strict", 1): result(0.7, rounds=rounds(0.5, 0.6, 0.7), bytes_a_device=3e6),
}


def test_gap_closed_is_the_share_of_the_way_to_central_m_of_the_same_seed():
    # seed 0: (0.7 - 0.6) / (0.8 - 0.6); seed 1: (0.7 - 0.5) / (0.7 - 0.5)
    assert Comparison(TABLE, RESULTS).gap_closed(0.7, 0) == pytest.approx(0.5)
    assert Comparison(TABLE, RESULTS).gap_closed(0.7, 1) == pytest.approx(1.0)
    assert Comparison(TABLE, RESULTS).gap_closed(0.7, 2) is None


def test_summary_gives_mean_and_sample_deviation_over_seeds():
    summary = Comparison(TABLE, RESULTS).summary
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
    assert Comparison(TABLE, results).summary["strict"]["swing"]["mean"] == pytest.approx(0.01)


def test_one_round_has_no_swing():
    assert largest_swing([0.0, 0.9, *[0.5] * 9, 0.47]) == pytest.approx(0.03)
    assert largest_swing([0.5]) is None


def test_curves_average_gap_and_bytes_over_seeds_by_round():
    (points,) = Comparison(TABLE, RESULTS).curves.values()
    # gaps of seed 0: 0, 0.75, 0.5; of seed 1: 0, 0.5, 1
    assert [gap for _, gap, _ in points] == pytest.approx([0, 0.625, 0.75])
    assert [sent for sent, _, _ in points] == pytest.approx([1e6, 2e6, 3e6])


def test_without_central_m_there_is_no_gap_and_no_curve():
    results = {key: value for key, value in RESULTS.items() if key[0] != "central-m"}
    assert Comparison(TABLE, results).curves == {}
    assert Comparison(TABLE, results).summary["strict"]["gap_closed"]["mean"] is None


def test_gaps_between_ends_that_are_no_further_apart_than_chance_are_left_out():
    near = {("central-m", 0): result(0.61), ("central-m", 1): result(0.7)}
    comparison = Comparison(TABLE, {**RESULTS, **near})  # 0.01 and 0.2 above
    assert comparison.summary["strict"]["gap_closed"]["mean"] is None
    text = markdown(comparison, "Arms", "dccl arms digits")
    assert "it is 10.5 ± 13.4 points, which is too little to measure by" in text
    assert Comparison(TABLE, RESULTS).no_gap == ""


def test_the_last_rounds_have_a_mean():
    late = Comparison(TABLE, RESULTS).summary["strict"]["late"]["seeds"]
    assert late == pytest.approx({0: (0.6 + 0.75 + 0.7) / 3, 1: 0.6})
    assert Comparison(TABLE, RESULTS).summary["central-m"]["late"]["mean"] is None


def test_bars_of_nothing_and_of_one_seed_are_told_apart(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(plots, "save_plot", lambda figure, path: drawn.append(figure))
    more = {("central-b", 0): result(0.9), ("mimic", 0): result(0.0)}
    plot_arms(Comparison(TABLE, {**RESULTS, **more}), "Arms", tmp_path / "arms.png")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["0 %", "0 %"]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "--"] == [
        [0.9, 0.9]
    ]


def test_markdown_holds_the_command_and_three_tables():
    text = markdown(Comparison(TABLE, RESULTS), "Arms", "dccl arms digits")
    assert "```bash\ndccl arms digits\n```" in text
    assert "seeds 0, 1" in text
    assert "| DC-CCL, strict | 70.0 ± 0.0 |" in text
    assert "0.75 ± 0.35" in text
    # the mean gap passes 0.5 after 2 MB and never reaches 0.8
    assert "| DC-CCL, strict | 2.00 | - | - | 3.00 | 0.75 |" in text
    assert "| mimic: logit mse | 2.00 |" in text


def test_arms_whose_first_scores_have_other_names_have_rows_without_a_gap():
    assert Comparison(TABLE, RESULTS).differing == []
    fit = [{"logit_mse": error, "bytes_a_device": 1e6} for error in (3.0, 1.0)]
    other = {**result(0.5), "scores": {"logit_mse": 1.0, "accuracy": 0.5}, "rounds": fit}
    kept = {key: value for key, value in RESULTS.items() if key[0] != "strict"}
    comparison = Comparison(TABLE, {**kept, ("strict", 0): other})
    assert comparison.differing == [
        "strict: its first score is logit_mse and that of cloud-submodel is accuracy; "
        "they cannot be compared"
    ]
    row = comparison.summary["strict"]
    found = {key: row[key]["mean"] for key in ("logit_mse", "accuracy", "gap_closed", "swing")}
    assert found == {"logit_mse": 1.0, "accuracy": 0.5, "gap_closed": None, "swing": 2.0}
    assert comparison.summary["central-m"]["gap_closed"]["mean"] == pytest.approx(1.0)
    assert comparison.curves == {}


def test_plots_are_written(tmp_path):
    comparison = Comparison(TABLE, RESULTS)
    plot_arms(comparison, "Arms", tmp_path / "arms.png")
    plot_bytes(comparison, "Bytes", tmp_path / "bytes.png")
    for name in ("arms", "bytes"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()


def test_epsilon_is_a_column_and_a_plot_where_a_run_has_one(tmp_path, monkeypatch):
    private = {
        ("strict", seed): {**RESULTS["strict", seed], "epsilon": 2 + seed} for seed in (0, 1)
    }
    comparison = Comparison(TABLE, {**RESULTS, **private})
    text = markdown(comparison, "Arms", "dccl arms digits")
    header, _, *rows = [line for line in text.splitlines() if line.startswith("|")][:8]
    assert header.endswith("| epsilon |")
    last = [row.split("|")[-2].strip() for row in rows if "strict" in row or "mimic" in row]
    assert sorted(set(last)) == ["-", "2.50 ± 0.71"]
    drawn = []
    monkeypatch.setattr(plots, "save_plot", lambda figure, path: drawn.append(figure))
    plot_epsilon(comparison, "Arms", tmp_path / "epsilon.png")
    (axes,) = drawn[0].axes
    (points,) = axes.containers
    assert [float(value) for value in points.lines[0].get_xdata()] == [2.5]
    assert axes.get_xscale() == "log"
    assert "epsilon" not in markdown(Comparison(TABLE, RESULTS), "Arms", "dccl arms digits")
