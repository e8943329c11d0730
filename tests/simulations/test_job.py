"""The process of a job: here in this one, and, the last test, in one of its own."""

from __future__ import annotations

import json

import pytest
import torch

from dccl_flower.config import ConfError
from dccl_flower.config_loading import dump_conf, load_conf
from dccl_flower.simulations import job as job_module
from dccl_flower.simulations.job import main, run_job
from dccl_flower.simulations.jobs import JobRunner, make_job
from dccl_flower.simulations.superlink import RunError


def call(experiment, description, folder):
    """Stand in for what a job calls."""
    assert not (folder / "result.json").exists()
    seen = {"seed": experiment.conf.seed, "threads_seen": torch.get_num_threads()}
    return {**seen, "kind": description["kind"]}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def describe(tmp_path, monkeypatch):
    """Return what writes a job that calls a function of this module."""

    def write(function=call, **facts):
        monkeypatch.setattr(job_module.pkgutil, "resolve_name", {"tests:call": function}.get)
        text = dump_conf(load_conf("digits", ["seed=3", "runtime.server_threads=2"]))
        make_job("a job", tmp_path, "k", text, "tests:call", **facts)
        return tmp_path

    return write


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("facts", "expected"), [({}, 2), ({"threads": 1}, 1)])
def test_what_the_function_returns_is_the_result_under_the_key(describe, facts, expected):
    folder = describe(kind="central", **facts)
    run_job(folder)
    assert json.loads((folder / "result.json").read_text()) == {
        "key": "k",
        "seed": 3,
        "threads_seen": expected,
        "kind": "central",
    }


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("error", "line", "has_traceback"),
    [
        (RunError("device 3 died (log: run/flower.log)"), "device 3 died (log: run/flower.log)", 0),
        (ConfError("loss=x: unknown"), "loss=x: unknown", 0),
        (ValueError("no\n  data"), "ValueError: no data", 1),
        (ZeroDivisionError(), "ZeroDivisionError:", 1),
    ],
)
def test_a_failure_is_one_line_and_leaves_no_result(describe, capsys, error, line, has_traceback):
    def fail(*_):
        raise error

    folder = describe(fail)
    with pytest.raises(SystemExit) as ended:
        main(folder)
    assert ended.value.code == f"failed: {line}"
    assert ("Traceback" in capsys.readouterr().err) == has_traceback
    assert not (folder / "result.json").exists()


@pytest.mark.usefixtures("threads")
def test_an_interrupt_is_no_failure_of_the_job(describe):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main(describe(interrupt))


METHODS = """
from dccl_flower.method import method_names

def tell(*_):
    return {"methods": method_names()}
"""


def test_what_lies_in_the_working_directory_hides_nothing_from_a_job(tmp_path, monkeypatch):
    cwd, lib = tmp_path / "cwd", tmp_path / "lib"
    for package in ("dccl_flower", "torch", "dccl_flower.egg-info"):
        (cwd / package).mkdir(parents=True)
        (cwd / package / "__init__.py").write_text("raise ImportError('a foreign module')")
    (cwd / "dccl_flower.egg-info" / "PKG-INFO").write_text("Name: dccl-flower\nVersion: 0.0.1\n")
    (cwd / "dccl_flower.egg-info" / "entry_points.txt").write_text("")
    lib.mkdir()
    (lib / "told.py").write_text(METHODS)
    monkeypatch.setenv("PYTHONPATH", str(lib))
    monkeypatch.chdir(cwd)
    text = dump_conf(load_conf("digits"))
    job = make_job("a job", tmp_path / "job", "k", text, "told:tell")
    with JobRunner(1, lambda outcome: None) as runner:
        (outcome,) = runner.run([job])
    assert outcome.error == ""
    assert set(outcome.result["methods"]) >= {"central", "dc_ccl", "fedavg", "heterofl"}
