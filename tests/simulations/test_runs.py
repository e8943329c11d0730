from __future__ import annotations

import json

import pytest
import torch

from dccl_flower.config import ConfError
from dccl_flower.simulations.app.run_folder import RUN_LOCK, locked
from dccl_flower.simulations.runs import runs_below
from dccl_flower.standing import Checkpoints, Standing

CONF = "seed: 3\nmethod:\n  name: fedavg\n"
EVENTS = [
    {"event": "started", "time": 10.0},
    {"event": "round", "time": 14.6, "round": 2, "total": 5, "score": "accuracy", "accuracy": 0.25},
]


def run_in(folder, events=EVENTS, tail=""):
    folder.mkdir(parents=True)
    (folder / "conf.yaml").write_text(CONF)
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "events.jsonl").write_text(lines + tail)
    return folder


def test_each_state_is_told_from_what_lies_there(tmp_path):
    (run_in(tmp_path / "a-done") / "results.json").write_text("{}")
    run_in(tmp_path / "b-failed", [], '{"event": "rou')
    stopped = run_in(tmp_path / "c" / "stopped")
    Checkpoints(stopped, 2).save(Standing(2, {"w": torch.ones(1)}))
    running = run_in(tmp_path / "d-running")
    with locked(running / RUN_LOCK):
        found = runs_below(tmp_path)
    states = ["done", "failed", "can be resumed after round 2", "running"]
    assert [run.state for run in found] == states
    first = found[0]
    assert (first.method, first.seed, first.round) == ("fedavg", "3", "2/5")
    assert (first.score, first.seconds) == ("25.0%", "5")
    assert (found[1].round, found[1].score, found[1].seconds) == ("-", "-", "-")
    assert runs_below(running)[0].state == "failed"


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfError, match="no run is there"):
        runs_below(tmp_path)
