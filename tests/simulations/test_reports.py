from __future__ import annotations

import platform
from importlib.metadata import version

import pytest

from dccl_flower.simulations import reports
from dccl_flower.simulations.reports import cell, machine, of_seeds, spread, spread_cell, table


def test_a_report_is_its_title_its_command_and_its_parts():
    text = reports.report("Arms", "dccl arms", "one", "two")
    assert text == "# Arms\n\n```bash\ndccl arms\n```\n\none\n\ntwo\n"


def test_words_are_aligned_to_the_left_and_numbers_to_the_right():
    rows = (row for row in [["a", "1.0", "2"], ["b", "failed", ""]])
    assert table(["arm", "x", "y, %"], rows).splitlines() == [
        "| arm | x | y, % |",
        "|---|---:|---:|",
        "| a | 1.0 | 2 |",
        "| b | failed | |",
    ]
    assert table(["run", "seeds", "x"], [], words=2) == "| run | seeds | x |\n|---|---|---:|"


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ([], None, None),
        ([None], None, None),
        ([float("nan"), None], None, None),
        ([0.5], 0.5, None),
        ([0.5, None], 0.5, None),
        ([0.5, float("nan"), 1.0], 0.75, 0.25 * 2**0.5),
    ],
)
def test_mean_and_sample_deviation_are_of_what_is_known(values, mean, std):
    assert spread(iter(values)) == {"mean": mean, "std": pytest.approx(std)}


@pytest.mark.parametrize(
    ("found", "style", "factor", "text"),
    [
        ({"mean": None, "std": None}, ".1f", 1, "-"),
        ({"mean": 0.5, "std": None}, ".1f", 100, "50.0"),
        ({"mean": 0.5, "std": 0.0}, "+.1f", 100, "+50.0 ± 0.0"),
        ({"mean": -0.5, "std": 0.25}, "+.2f", 1, "-0.50 ± 0.25"),
    ],
)
def test_a_mean_stands_with_its_deviation(found, style, factor, text):
    assert spread_cell(found, style, factor) == text


def test_a_cell_is_a_number_or_a_dash():
    assert [cell(None, ".1f"), cell(0.125, ".1f", 100), cell(12345, ",")] == ["-", "12.5", "12,345"]


def test_seeds_in_words():
    assert of_seeds([3]) == "seed 3"
    assert of_seeds([0, 2]) == "mean ± standard deviation of seeds 0, 2"


def test_versions_of_python_and_of_the_packages_that_decide_the_numbers():
    found = reports.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert {"dccl-flower", "flwr", "torchvision", "timm", "torch-pruning"} <= found.keys()


def test_a_machine_in_one_line(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    found = {"flwr": "1.2", "torch": "3", "ray": "4"}
    assert machine(found) == "8 cores, torch 3, flwr 1.2"
    assert machine(found, found) == "8 cores, flwr 1.2, torch 3, ray 4"
    assert machine({}) == "8 cores"
