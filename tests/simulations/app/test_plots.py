from __future__ import annotations

from dataclasses import asdict

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dccl_flower.config_loading import load_conf
from dccl_flower.engine import RoundFacts
from dccl_flower.simulations.app import plots
from dccl_flower.simulations.app.plots import plot_curves
from dccl_flower.simulations.app.recorder import round_row

SCORES = {"accuracy": 0.5, "accuracy_cloud_classes": 0.6}
REFERENCES = {"cloud_submodel": {"accuracy": 0.4}, "mimic": {"accuracy": 0.3, "kl": 2.0}}


@pytest.fixture
def results():
    facts = RoundFacts([0], 10**6, 10**5)
    scores = [
        {**SCORES, "accuracy_device_classes": 0.1 * number, "gap": -0.1} for number in (1, 2, 3)
    ]
    return {
        "conf": asdict(load_conf("digits")),
        "seed": 0,
        "final": scores[-1],
        "references": REFERENCES,
        "rounds": [round_row(place, each, 1.0, facts) for place, each in enumerate(scores, 1)],
        "seconds": {"total": 3.0},
    }


def test_axes_have_names_units_and_every_line_a_label(results, tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: figures.append(f) or save(f, *a, **k))
    plot_curves(results, tmp_path / "curves.png")
    figure, _ = figures  # as PNG and as SVG
    top, gap, bottom = figure.axes
    assert gap.get_ylabel() == "gap"
    assert top.get_ylabel() == "accuracy"
    assert (bottom.get_xlabel(), bottom.get_ylabel()) == ("round", "MB, all devices")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *("accuracy", "accuracy cloud classes", "accuracy device classes"),
        *("cloud submodel alone", "mimic alone", "target: cloud submodel + 15 points"),
    ]
    assert all(
        float(tick).is_integer() for axes in (top, gap, bottom) for tick in axes.get_xticks()
    )
    device_line = top.get_lines()[2]
    assert list(device_line.get_xdata()) == [1, 2, 3]
    assert list(device_line.get_ydata()) == pytest.approx([0.1, 0.2, 0.3])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width == 1200


def test_without_a_target_no_target_line_is_drawn(results, tmp_path):
    results["conf"]["target_gain"] = None
    plot_curves(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_a_virtual_clock_adds_the_first_scores_over_virtual_time(results, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_plot", lambda figure, path: figures.append(figure))
    for row in results["rounds"]:
        row["virtual_seconds"] = 2.5
    results["seconds"]["virtual"] = 7.5
    monkeypatch.setattr(
        "dccl_flower.simulations.figures.write_aside", lambda path, draw: draw(path)
    )
    plot_curves(results, tmp_path / "curves.png")
    *_, last = figures[0].axes
    assert (last.get_xlabel(), last.get_ylabel()) == ("virtual seconds", "accuracy")
    assert list(last.get_lines()[0].get_xdata()) == [2.5, 5.0, 7.5]


def test_a_method_without_scores_has_its_bytes_drawn(results, tmp_path):
    results["final"] = {}
    plot_curves(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
