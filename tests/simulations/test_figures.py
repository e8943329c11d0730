from __future__ import annotations

import os

import pytest
from matplotlib.figure import Figure

from dccl_flower.simulations.figures import save_figure


def test_a_figure_is_written_as_png(tmp_path):
    figure = Figure(figsize=(2, 1))
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_figure_that_cannot_be_drawn_leaves_the_last_one(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("before")
    figure = Figure()
    monkeypatch.setattr(figure, "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "before"
