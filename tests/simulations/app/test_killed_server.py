"""A run that is killed by -9 in each of its phases, one after the other, and its last attempt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from stopped_runs import left_by, run_once

CHANGES = ("devices.count=4", "rounds.count=4", "rounds.local_steps=2", "data.train_fraction=0.5")
CHANGES = (*CHANGES, "pretrain.epochs=2", "distil.epochs=2", "wire.codec=int8")
CHANGES = (*CHANGES, "rounds.keep_momentum=true")
# What is called in a phase, and the call in which the process ends: nothing is cleaned up then.
PHASES = {
    "pretraining": ("dccl_flower.learning.pretrain", "fit", 1),
    "distilling": ("dccl_flower.strategies.dc_ccl.cloud", "distil", 1),
    "in mid-round": ("dccl_flower.in_process", "time_limit", 6),
    "saving a checkpoint": ("dccl_flower.standing.Path", "rename", 2),
    "saving results": ("dccl_flower.simulations.app.experiment_run", "save_models", 1),
}
PROGRAM = """\
import os, pkgutil, signal, sys
from pathlib import Path
sys.path.insert(0, {helpers!r})
import torch
torch.set_num_threads(1)
from stopped_runs import run_once
owner, name, calls = pkgutil.resolve_name({owner!r}.replace(".Path", ":Path")), {name!r}, {calls}
inner = getattr(owner, name)

def killing(*given, **more):
    global calls
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*given, **more)

setattr(owner, name, killing)
run_once("digits", {changes!r}, Path({folder!r}), resume={resume})
"""


def killed(phase, folder, resume):
    owner, name, calls = PHASES[phase]
    given = {"owner": owner, "name": name, "calls": calls, "changes": CHANGES}
    helpers = next(path for path in sys.path if path.endswith("helpers"))
    code = PROGRAM.format(helpers=helpers, folder=str(folder), resume=resume, **given)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_a_run_killed_in_every_phase_ends_as_one_that_was_not(tmp_path):
    folder = tmp_path / "killed"
    for phase in PHASES:
        done = killed(phase, folder, resume=folder.exists())
        assert done.returncode == -signal.SIGKILL, (phase, done.stderr)
    run_once("digits", CHANGES, folder, resume=True)
    run_once("digits", CHANGES, tmp_path / "at-once")
    assert left_by(folder) == left_by(tmp_path / "at-once")
    assert {path.name for path in folder.iterdir()} >= {"results.json", "rounds.csv", "conf.yaml"}
    assert not (folder / "checkpoints").exists()
