"""A run whose worker and whose command are killed leaves no process, and ends as if it were not."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from real_runs import BIN, dccl, environment, left_of, model_hash, results_of, run_in_process

pytestmark = pytest.mark.integration

CHANGES = ["devices.per_round=4", "rounds.count=6", "rounds.local_steps=20"]
CHANGES += ["rounds.keep_momentum=true", "wire.codec=int8", "pretrain.epochs=1", "distil.epochs=1"]


def wait_until(is_so, seconds):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def line_with(process, text):
    while text not in (line := process.stdout.readline()):
        assert line, f"the run ended before it said {text!r}"
    return line


def test_a_killed_run_leaves_nothing_behind_and_goes_on_to_the_same_end(tmp_path):
    command = [BIN / "dccl", "run", "digits", *CHANGES, "--output", "out"]
    pipe = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipe) as process:
        line_with(process, "round 1/")
        family = psutil.Process(process.pid).children(recursive=True)
        next(each for each in family if "ClientAppActor" in each.name()).send_signal(signal.SIGKILL)
        assert "the worker of device" in line_with(process, "another attempt after round")
        line_with(process, "round 4/")
        family = psutil.Process(process.pid).children(recursive=True)
        superlink = next(each for each in family if "flower-superlink" in str(each.cmdline()))
        home = superlink.environ()["FLWR_HOME"]
        process.kill()
    wait_until(lambda: not left_of(family), 60)
    wait_until(lambda: not Path(home).exists(), 10)
    listed = subprocess.check_output(
        [BIN / "dccl", "runs", "."], cwd=tmp_path, env=environment(), text=True
    )
    assert "can be resumed" in listed
    done = dccl("--resume", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the run goes on after round" in done.stdout
    here = run_in_process(tmp_path, *CHANGES)
    role = "co_submodel"
    assert model_hash(tmp_path / "out", role) == model_hash(here, role)
    ours, theirs = results_of(tmp_path / "out"), results_of(here)
    assert ours["final"] == theirs["final"]
    cohorts = [[row["devices"] for row in each["rounds"]] for each in (ours, theirs)]
    assert cohorts[0] == cohorts[1]
