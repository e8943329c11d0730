from __future__ import annotations

from dataclasses import asdict

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dccl_flower.config_loading import load_conf
from dccl_flower.engine import RoundFacts
from dccl_flower.simulations.app.plots import plot_curves
from dccl_flower.simulations.app.results import Results, RoundResult

SCORES = {"accuracy": 0.5, "accuracy_cloud_classes": 0.6}
REFERENCES = {"cloud_submodel": {"accuracy": 0.4}, "mimic": {"accuracy": 0.3, "kl": 2.0}}


@pytest.fixture
def results():
    facts = RoundFacts([0], 10**6, 10**5)
    rounds = [
        RoundResult(r, {**SCORES, "accuracy_device_classes": 0.1 * r, "gap": -0.1}, 1.0, facts)
        for r in (1, 2, 3)
    ]
    conf = asdict(load_conf("digits"))
    return Results(conf, 0, {}, dict(rounds[-1].scores), REFERENCES, rounds, {}, {}, {})


def test_axes_have_names_units_and_every_line_a_label(results, tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: figures.append(f) or save(f, *a, **k))
    plot_curves(results, tmp_path / "curves.png")
    (figure,) = figures
    top, gap, bottom = figure.axes
    assert gap.get_ylabel() == "gap"
    assert top.get_ylabel() == "accuracy"
    assert (bottom.get_xlabel(), bottom.get_ylabel()) == ("round", "MB, all devices")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *("accuracy", "accuracy cloud classes", "accuracy device classes"),
        *("cloud submodel alone", "mimic alone", "target: cloud submodel + 15 points"),
    ]
    device_line = top.get_lines()[2]
    assert list(device_line.get_xdata()) == [1, 2, 3]
    assert list(device_line.get_ydata()) == pytest.approx([0.1, 0.2, 0.3])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width == 1200


def test_without_a_target_no_target_line_is_drawn(results, tmp_path):
    results.conf["target_gain"] = None
    plot_curves(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
