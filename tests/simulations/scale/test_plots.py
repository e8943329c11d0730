from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dccl_flower.simulations.scale.cases import BARE, DCCL, FLOWER
from dccl_flower.simulations.scale.plots import plot_scale


def row(system, control, devices, cpu, workers=1, memory=500.0):
    return {
        "system": system,
        "control": control,
        "devices": devices,
        "workers": workers,
        "later": {"cpu_s": cpu},
        "turns_per_s": 1 / cpu,
        "worker_mb": memory,
    }


ROWS = [
    row(BARE, "none", 50, 0.1, memory=None),
    row(FLOWER, "none", 100, 0.16),
    row(FLOWER, "none", 1000, 0.2, workers=2),
    row(DCCL, "mimic", 10_000, 0.12),
    row(DCCL, "mimic", 100, 0.11),
    {"system": DCCL, "control": "mimic", "devices": 10, "workers": 1, "error": "lost"},
]


@pytest.fixture(scope="module")
def figure(tmp_path_factory):
    figures, path = [], tmp_path_factory.mktemp("plot") / "scale.png"
    save = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda f, *a, **k: figures.append(f) or save(f, *a, **k))
        plot_scale(ROWS, path)
    with Image.open(path) as picture:
        assert picture.width > 1500
    return figures[0]


def test_all_axes_are_logarithmic_with_names_and_units(figure):
    names = [axes.get_ylabel() for axes in figure.axes]
    assert names == ["CPU-ms a later turn", "device-turns a second", "MB of the largest worker"]
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_xlabel() == "devices"


def test_every_system_is_a_curve_by_population_for_each_number_of_workers(figure):
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines) == [
        *("bare torch loop", "Flower FedAvg, 1 worker", "Flower FedAvg, 2 workers"),
        "DC-CCL, 1 worker",
    ]
    ours = lines["DC-CCL, 1 worker"]
    assert list(ours.get_xdata()) == [100, 10_000]
    assert list(ours.get_ydata()) == pytest.approx([110, 120])


def test_what_was_not_measured_is_left_out(figure):
    labels = [line.get_label() for line in figure.axes[2].get_lines()]
    assert "bare torch loop" not in labels


def test_values_span_a_decade_so_that_noise_looks_like_noise(figure):
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert high / low >= 9.99
