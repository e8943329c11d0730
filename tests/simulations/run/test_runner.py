"""When a run makes another attempt, and what it says where it makes none."""

from __future__ import annotations

import shutil

import pytest

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.app.run_folder import LOG_FILE
from dccl_flower.simulations.run.display import Display
from dccl_flower.simulations.run.following import WorthAnother
from dccl_flower.simulations.run.runner import _attempts, _told
from dccl_flower.simulations.superlink import FlowerError, RunError
from dccl_flower.standing import FOLDER, Checkpoints, Standing


def attempts(folder, rounds, *changes):
    """Return what was told of earlier attempts, each of which completes rounds and is lost."""
    told, left, conf = [], list(rounds), load_conf("digits", changes)
    checkpoints = Checkpoints(folder, conf.runtime.keep_last)

    def attempt(again):
        told.append(again)
        for number in left.pop(0):
            checkpoints.save(Standing(number, {}))
        if left:
            raise WorthAnother("a worker is gone")

    _attempts(attempt, conf, folder, Display())
    return told


def test_a_lost_run_goes_on_as_long_as_rounds_are_added(tmp_path):
    assert attempts(tmp_path, [[], [1], [2, 3], []]) == [False, True, True, True]


@pytest.mark.parametrize(
    ("rounds", "changes"),
    [
        ([[], [], []], []),
        ([[1, 2], [], []], []),
        ([[1], []], ["runtime.keep_last=0"]),
        ([[1], []], ["privacy.dp=server_adaptive", "normalisation=group"]),
    ],
)
def test_a_run_that_is_lost_twice_or_keeps_nothing_ends(rounds, changes, tmp_path):
    with pytest.raises(WorthAnother, match="a worker is gone"):
        attempts(tmp_path, rounds, *changes)


def test_the_line_names_the_log_and_how_to_go_on(tmp_path):
    Checkpoints(tmp_path, 2).save(Standing(4, {}))
    (tmp_path / LOG_FILE).write_text("nothing\n")
    told = _told(FlowerError("the SuperLink has died"), tmp_path)
    log = tmp_path / LOG_FILE
    more = f"dccl run --resume {tmp_path} goes on after round 4"
    assert told == f"the SuperLink has died (log: {log}); {more}"
    told = _told(RunError("device 3 sent a NaN"), tmp_path)
    assert told == f"device 3 sent a NaN (log: {log}); {more}"
    shutil.rmtree(tmp_path / FOLDER)
    assert _told(RunError("device 3 sent a NaN"), tmp_path) == f"device 3 sent a NaN (log: {log})"


def test_a_removed_run_directory_is_named(tmp_path):
    gone = tmp_path / "out"
    told = _told(FlowerError("the log says nothing"), gone)
    assert told == f"output={gone}: the run directory has been removed during the run"
