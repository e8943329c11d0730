from __future__ import annotations

import io

import pytest
from rich.console import Console

from dccl_flower.simulations.scale.display import ScaleDisplay, outcome

ROW = {"title": "DC-CCL, 100 devices", "later": {"cpu_s": 0.0512, "wall_s": 0.0634}}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (ROW, "DC-CCL, 100 devices: 51.2 ms of CPU and 63.4 ms a later turn"),
        ({"title": "pfl", "note": "not installed"}, "pfl: not installed"),
        ({"title": "Flower", "error": "it died"}, "Flower: failed: it died"),
        ({"title": "Flower", "later": None}, "Flower: no later round"),
    ],
)
def test_an_outcome_is_one_line(row, text):
    assert outcome(row) == text


def run(**options):
    console = Console(file=io.StringIO(), width=120, **options)
    with ScaleDisplay(3, console) as display:
        display.begin("DC-CCL, 100 devices")
        display.note("starting Flower")
        display.show({"event": "started", "time": 1.0})
        display.show({"event": "phase", "phase": "pretrain", "done": 1, "total": 2, "time": 2.0})
        display.show({"event": "round", "round": 2, "total": 4})
        display.end(ROW)
    return console.file.getvalue()


def test_elsewhere_a_measurement_is_a_line():
    (line,) = run().splitlines()
    assert line.startswith("[1/3] DC-CCL, 100 devices: 51.2 ms of CPU")


def test_a_terminal_also_shows_the_rounds():
    shown = run(force_terminal=True)
    assert "round 2/4" in shown
    assert "[1/3] DC-CCL, 100 devices" in shown
