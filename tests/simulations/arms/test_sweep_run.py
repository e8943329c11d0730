from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import FakeRunner, result_of

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.arms import comparison
from dccl_flower.simulations.arms.arms import Arm, ArmTable, load_arms
from dccl_flower.simulations.arms.sweep import Sweep
from dccl_flower.simulations.arms.sweep_run import run_sweep
from dccl_flower.simulations.superlink import RunError

TABLE = load_arms("dc_ccl")
BUILT = ArmTable({"base": Arm("B"), "top": Arm("T", ["method.name=other"], builds_on="base")})


def by_rate(conf):
    return None if conf.rounds.lr > 1 else result_of(accuracy=conf.rounds.lr + conf.seed / 10)


@pytest.fixture
def sweeping(tmp_path, monkeypatch):
    """Return a sweep whose results follow from configurations; it returns what it has run."""
    checked = []
    monkeypatch.setattr(comparison, "open_experiment", lambda conf: conf)
    monkeypatch.setattr(comparison, "check_devices", checked.append)

    def run(sweep, score=by_rate, table=TABLE):
        runner = FakeRunner.by(score)
        monkeypatch.setattr(comparison, "JobRunner", runner)
        try:
            run_sweep(table, load_conf("cifar10"), sweep, tmp_path, 2, "dccl sweep cifar10")
        finally:
            run.checked = list(checked)
            checked.clear()
            run.started = runner.started

    return run


def test_a_sweep_leaves_a_table_a_plot_and_json(tmp_path, sweeping, capsys):
    sweeping(Sweep("rounds.lr", ["0.1", "0.2"], ["strict", "mimic"], [0, 1]))
    assert sweeping.started[:2] == ["mimic, rounds.lr=0.1, seed 0", "mimic, rounds.lr=0.1, seed 1"]
    assert len(sweeping.started) == 8
    assert [conf.rounds.lr for conf in sweeping.checked] == [0.1, 0.1, 0.2, 0.2]
    told = capsys.readouterr().out
    assert (tmp_path / "sweep.md").read_text() in told
    assert told.endswith(f"sweep: {tmp_path}\n")
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert (content["command"], content["key"]) == ("dccl sweep cifar10", "rounds.lr")
    accuracy = content["values"]["0.2"]["strict"]["accuracy"]
    assert accuracy["seeds"] == pytest.approx({"0": 0.2, "1": 0.3})
    assert accuracy["mean"] == pytest.approx(0.25)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_not_run_again(sweeping):
    sweeping(Sweep("rounds.lr", ["0.1"], ["strict"], [0]))
    sweeping(Sweep("rounds.lr", ["0.1", "0.3"], ["strict"], [0, 1]))
    assert sweeping.started == [
        "strict, rounds.lr=0.1, seed 1",
        "strict, rounds.lr=0.3, seed 0",
        "strict, rounds.lr=0.3, seed 1",
    ]


def test_one_number_written_twice_is_run_once(sweeping):
    sweeping(Sweep("rounds.lr", ["0.1", "0.10"], ["strict"], [0]))
    assert len(sweeping.started) == 1


def test_a_failure_is_told_after_the_table_of_the_others(tmp_path, sweeping):
    with pytest.raises(RunError, match=r"^strict, rounds\.lr=2, seed 0: no data .*1 more failed$"):
        sweeping(Sweep("rounds.lr", ["0.1", "2"], ["strict"], [0, 1]))
    assert list(json.loads((tmp_path / "sweep.json").read_text())["values"]) == ["0.1"]


def test_first_scores_that_differ_are_told_after_the_table(tmp_path, sweeping):
    def score(conf):
        return result_of(ndcg=0.1) if conf.rounds.lr == 0.2 else by_rate(conf)

    with pytest.raises(
        RunError, match=r"^strict, rounds\.lr=0\.2: its first score is ndcg and that"
    ):
        sweeping(Sweep("rounds.lr", ["0.1", "0.2"], ["strict"], [0]), score)
    values = json.loads((tmp_path / "sweep.json").read_text())["values"]
    assert values["0.2"]["strict"]["ndcg"]["mean"] == 0.1
    assert (tmp_path / "sweep.png").exists()


def test_where_all_fail_there_is_no_table(tmp_path, sweeping):
    with pytest.raises(RunError, match=r"no data"):
        sweeping(Sweep("rounds.lr", ["2"], ["strict"], [0]))
    assert not (tmp_path / "sweep.md").exists()


def test_an_impossible_value_is_told_before_anything_is_written(tmp_path, sweeping):
    with pytest.raises(ConfError, match=r"^rounds\.lr=0\.0: must be above 0 and finite$"):
        sweeping(Sweep("rounds.lr", ["0.1", "0"], ["strict"], [0]))
    assert not list(tmp_path.iterdir())


def test_what_only_another_builds_on_runs_once_and_first_and_has_no_row(
    tmp_path, sweeping, other_method
):
    sweeping(Sweep("method.depth", ["1", "2"], ["top"], [0]), table=BUILT)
    assert sweeping.started == [
        "base, seed 0",
        "top, method.depth=1, seed 0",
        "top, method.depth=2, seed 0",
    ]
    values = json.loads((tmp_path / "sweep.json").read_text())["values"]
    assert {value: list(arms) for value, arms in values.items()} == {"1": ["top"], "2": ["top"]}
    assert [conf.method.name for conf in sweeping.checked] == ["dc_ccl"]


@pytest.mark.integration
def test_a_sweep_of_a_bound_through_the_command(tmp_path):
    small = ["method.name=central", "pretrain.epochs=1", "distil.epochs=1", "rounds.local_steps=4"]
    command = [Path(sys.executable).parent / "dccl", "sweep", "digits", "rounds.count=1,2", *small]
    environment = {**os.environ, "DCCL_CACHE": str(tmp_path / "cache")}
    options = ["--seeds", "0", "--jobs", "2"]
    for left in ("(1 left", "in 0 s (all done)"):
        done = subprocess.run(
            [*command, *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert left in done.stdout
    folder = tmp_path / "runs" / "sweep-digits-rounds.count"
    content = json.loads((folder / "sweep.json").read_text())
    assert {value: list(arms) for value, arms in content["values"].items()} == {
        "1": ["digits"],
        "2": ["digits"],
    }
    text = (folder / "sweep.md").read_text()
    assert "dccl sweep digits rounds.count=1,2 method.name=central pretrain.epochs=1" in text
    assert str(tmp_path) not in text
