from __future__ import annotations

import pytest
from fake_runs import result_of
from matplotlib.figure import Figure

from dccl_flower.simulations.arms.arms import load_arms
from dccl_flower.simulations.arms.plots import plot_sweep
from dccl_flower.simulations.arms.sweep import Sweep
from dccl_flower.simulations.arms.sweep_report import SweepComparison

TABLE = load_arms("dc_ccl")
ARMS = ["strict", "cloud-submodel", "central-m"]


@pytest.fixture
def axes_of(tmp_path, monkeypatch):
    """Return a maker of the axes of a sweep's plot."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: figures.append(f) or save(f, *a, **k))

    def draw(*values, arms=ARMS):
        results = {
            (value, arm, seed): result_of(accuracy=(1 + place) / 10 + seed / 100)
            for place, value in enumerate(values)
            for arm in arms
            for seed in (0, 1)
        }
        sweep = Sweep("rounds.lr", values, arms, [0, 1])
        plot_sweep(SweepComparison(TABLE, sweep, results), "Sweep", tmp_path / "sweep.png")
        assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
        return figures.pop().axes[0]

    return draw


def test_numbers_stand_in_order_on_an_axis_of_numbers(axes_of):
    axes = axes_of("0.3", "0.1", "0.2")
    line = axes.containers[0].lines[0]
    assert list(line.get_xdata()) == [0.1, 0.2, 0.3]
    assert list(line.get_ydata()) == pytest.approx([0.205, 0.305, 0.105])
    assert (axes.get_xscale(), axes.get_xlabel()) == ("linear", "rounds.lr")
    assert axes.get_ylabel() == "test accuracy"


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (("0.001", "0.01", "0.1"), "log"),
        (("1", "1000"), "log"),
        (("0.01", "0.9"), "linear"),
        (("0", "1000"), "linear"),
        (("-1", "1000"), "linear"),
        (("5",), "linear"),
    ],
)
def test_numbers_over_two_decades_stand_on_a_log_axis(axes_of, values, scale):
    assert axes_of(*values).get_xscale() == scale


@pytest.mark.parametrize("values", [("ce", "prior_corrected"), ("", "5"), ("nan", "1"), ("[1,2]",)])
def test_other_values_stand_side_by_side_as_given(axes_of, values):
    axes = axes_of(*values)
    assert list(axes.containers[0].lines[0].get_xdata()) == list(range(len(values)))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [value or "null" for value in values]


def test_each_arm_is_a_line_with_bars_and_the_ends_of_the_gaps_are_dashed(axes_of):
    bars = axes_of("1", "2").containers
    styles = {each.get_label(): each.lines[0].get_linestyle() for each in bars}
    titles = [TABLE.arms[name].title for name in ARMS]
    assert styles == dict(zip(titles, ("-", "--", "--"), strict=True))
    segment = bars[0].lines[2][0].get_segments()[0]
    assert segment[1][1] - segment[0][1] == pytest.approx(2 * 0.00005**0.5)
