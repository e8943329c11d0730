"""Checkpoints that are whole, and are not of the run that goes on."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from stopped_runs import run_once, stop

from dccl_flower.config import ConfError
from dccl_flower.standing import Checkpoints

CONF = "dccl_world"
CHANGES = (
    "data.world.users=40",
    "data.world.items=30",
    "pretrain.epochs=1",
    "device.epochs=1",
    "devices.count=3",
    "rounds.count=2",
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Return the folder of a run that was stopped in its second round."""
    folder = tmp_path_factory.mktemp("run") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        stop(CONF, CHANGES, folder, 4, patch)
    return folder


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


def bent(stopped, tmp_path, change):
    """Return a copy of the run whose one checkpoint has been changed."""
    folder = shutil.copytree(stopped, tmp_path / "bent")
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(change(checkpoints.last()))
    return folder


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            lambda s: replace(s, told={**s.told, "spent": {"rounds": 1.0}}),
            "KeyError: 'total'",
        ),
        (
            lambda s: replace(s, told={**s.told, "recorded": {"rounds": "none"}}),
            "KeyError: 'final'",
        ),
        (
            lambda s: replace(s, state={**s.state, "extra": torch.zeros(2)}),
            "ValueError: 'extra' is in one of them alone",
        ),
        (
            lambda s: replace(s, state={n: tensor[None] for n, tensor in s.state.items()}),
            r"ValueError: '\S+' is \(1, .+\), expected \(.+\)",
        ),
        (lambda s: replace(s, memory={}), "KeyError: '.+'"),
    ],
)
def test_what_does_not_fit_the_run_is_one_line(change, cause, stopped, tmp_path):
    folder = bent(stopped, tmp_path, change)
    line = rf"^checkpoint of round 1: does not fit this run: {cause}$"
    with pytest.raises(ConfError, match=line):
        run_once(CONF, CHANGES, folder, resume=True)
    assert (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda s: replace(s, told=without(s.told, "code")), "'code'"),
        (lambda s: replace(s, told={**s.told, "spent": []}), "its told's spent is no dict"),
        (lambda s: replace(s, engine={**s.engine, "held": 3}), "its engine's held is no list"),
    ],
)
def test_what_lacks_what_every_run_needs_is_passed_over(change, cause, stopped, tmp_path, caplog):
    folder = bent(stopped, tmp_path, change)
    run_once(CONF, CHANGES, folder, resume=True)
    told = [message for message in caplog.messages if "checkpoint" in message]
    assert told == [
        f"checkpoint {folder}/checkpoints/round-00001 is damaged ({cause}): it is passed over"
    ]
    assert "no round was complete: the run begins anew" in caplog.messages
    assert (folder / "results.json").exists()
