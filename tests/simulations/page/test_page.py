"""The page stands by itself and tells the numbers of results.json."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from stopped_runs import run_once

from dccl_flower.config import ConfError
from dccl_flower.simulations.cli import cli
from dccl_flower.simulations.page.judged import judge_run
from dccl_flower.simulations.page.page import write_report

SMALL = ("data.train_fraction=0.5", "devices.count=2", "rounds.count=2", "rounds.local_steps=4")
RUNS = {
    "controlled": (*SMALL, "pretrain.epochs=2", "distil.epochs=1"),
    "averaged": (*SMALL, "method.name=fedavg"),
}
VOID = {"meta", "path", "use", "image", "rect"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, overrides in RUNS.items():
        run_once("digits", overrides, root / name)
    return [root / name for name in RUNS]


class Page(HTMLParser):
    """Takes note of texts and of what a page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.loaded = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_a_page_of_two_runs_has_the_numbers_of_both(folders, tmp_path):
    assert write_report(folders, tmp_path / "page.html") == []
    page = Page((tmp_path / "page.html").read_text())
    assert page.open == []
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        assert f"{results['final']['accuracy']:.4f}" in page.texts
        assert f"{results['seconds']['total']:.1f}" in page.texts
        assert folder.name in page.texts
    wire = json.loads((folders[0] / "results.json").read_text())["wire"]
    assert f"{wire['co_down'] / 1e6:.2f}" in page.texts
    assert page.texts.count("Confusion") == 2
    assert all(each.startswith(("#", "data:")) for each in page.loaded)  # nothing from elsewhere


def test_classes_add_up_to_the_run_s_accuracy(folders):
    for folder in folders:
        judged = judge_run(folder)
        final = json.loads((folder / "results.json").read_text())["final"]
        counts = judged.confusion
        assert counts.sum() == len(judged.labels)
        assert np.trace(counts) / counts.sum() == pytest.approx(final["accuracy"])


def test_what_the_devices_taught_is_right_as_served_and_wrong_alone(folders):
    controlled, averaged = (judge_run(folder) for folder in folders)
    rows = controlled.taught()
    assert np.array_equal(controlled.served[rows], controlled.labels[rows])
    assert (controlled.alone[rows] != controlled.labels[rows]).all()
    assert set(controlled.labels[rows]) <= set(controlled.sides[1])
    assert averaged.alone is None
    assert not len(averaged.taught())


def test_a_run_whose_data_are_gone_has_a_page_without_classes(folders, tmp_path):
    folder = tmp_path / "moved"
    folder.mkdir()
    (folder / "results.json").write_bytes((folders[0] / "results.json").read_bytes())
    conf = (folders[0] / "conf.yaml").read_text()
    (folder / "conf.yaml").write_text(conf.replace("  path: null", "  path: /not/there", 1))
    (folder / "models").symlink_to(folders[0] / "models")
    (note,) = write_report([folder], tmp_path / "page.html")
    assert note == "data.path=/not/there: no such folder"
    assert note in " ".join(Page((tmp_path / "page.html").read_text()).texts)


def test_what_is_no_run_is_refused(folders, tmp_path):
    with pytest.raises(ConfError, match=r"holds no results\.json"):
        write_report([folders[0], tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_says_where_the_page_is(folders):
    result = CliRunner().invoke(cli, ["report", str(folders[0])])
    assert result.output == f"report: {folders[0] / 'report.html'}\n"
