from __future__ import annotations

import json

import pytest
from fake_runs import FakeRunner, result_of

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.arms import comparison
from dccl_flower.simulations.arms.arms import Arm, ArmTable, load_arms
from dccl_flower.simulations.arms.comparison import run_arms
from dccl_flower.simulations.reports import command_line
from dccl_flower.simulations.superlink import RunError

BUILT = ArmTable({"base": Arm("B"), "top": Arm("T", ["method.name=other"], builds_on="base")})


@pytest.fixture
def checked(monkeypatch):
    """Take note of which configurations are checked with their data."""
    confs = []
    monkeypatch.setattr(comparison, "open_experiment", lambda conf: conf)
    monkeypatch.setattr(comparison, "check_devices", confs.append)
    return confs


def compare(monkeypatch, score, table, arms, folder):
    """Run a comparison in which a job's result follows from its configuration."""
    monkeypatch.setattr(comparison, "JobRunner", FakeRunner.by(score))
    run_arms(table, load_conf("cifar10"), arms, [0, 1], folder, 2, "dccl arms cifar10")


def accuracy(conf):
    return result_of(accuracy=0.9 if conf.method.name == "other" else 0.5)


def test_the_command_over_a_table_tells_no_path_of_a_machine():
    overrides = ["seed=1", "data.path=some/where", "devices.store=else/where", "seed=1"]
    command = command_line("arms", "probe", overrides, ["--seeds", "0,1"])
    assert command == "dccl arms probe seed=1 data.path=PATH/TO/cifar10 --seeds 0,1"


def test_a_data_set_goes_by_the_name_it_has_on_the_hub():
    command = command_line("search", "fashion_mnist", ["data.path=some/where"])
    assert command == "dccl search fashion_mnist data.path=PATH/TO/fashion_mnist"


def test_an_arm_brings_the_one_it_builds_on(tmp_path, monkeypatch, other_method, checked):
    compare(monkeypatch, accuracy, BUILT, ["top"], tmp_path)
    report = json.loads((tmp_path / "arms.json").read_text())["arms"]
    assert {name: row["accuracy"]["mean"] for name, row in report.items()} == {
        "base": 0.5,
        "top": 0.9,
    }
    assert [conf.method.name for conf in checked] == ["dc_ccl"]  # the other's run was not there


def test_what_builds_on_a_finished_run_is_checked(tmp_path, monkeypatch, other_method, checked):
    compare(monkeypatch, accuracy, BUILT, ["base"], tmp_path)
    checked.clear()
    compare(monkeypatch, accuracy, BUILT, ["top"], tmp_path)
    assert [conf.method.name for conf in checked] == ["dc_ccl", "other"]


def test_first_scores_of_other_names_are_one_line_after_the_table(tmp_path, monkeypatch, checked):
    table = load_arms("dc_ccl")

    def other_score(conf):
        return result_of(ndcg=0.1) if conf.method.name == "central" else accuracy(conf)

    with pytest.raises(
        RunError, match=r"^published: its first score is accuracy and that of mimic"
    ):
        compare(monkeypatch, other_score, table, ["mimic", "published"], tmp_path)
    report = json.loads((tmp_path / "arms.json").read_text())["arms"]
    assert (report["mimic"]["ndcg"]["mean"], report["published"]["accuracy"]["mean"]) == (0.1, 0.5)
    assert (tmp_path / "arms.png").exists()
