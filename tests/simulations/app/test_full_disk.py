"""A disk that is full by the time a run ends: nothing is lost."""

from __future__ import annotations

import pytest
from full_disk import NO_ROOM, files_up_to
from stopped_runs import left_by, run_once

from dccl_flower.simulations.superlink import RunError

CHANGES = (
    "data.train_fraction=0.5",
    "pretrain.epochs=1",
    "distil.epochs=1",
    "devices.count=2",
    "rounds.count=2",
    "rounds.local_steps=2",
)


def test_what_cannot_be_saved_is_named_and_the_run_goes_on_once_there_is_room(tmp_path, caplog):
    run_once("digits", CHANGES, tmp_path / "at-once")
    folder = tmp_path / "full"
    # Room for what a round keeps of the small co-submodel, and none for the cloud submodel.
    with files_up_to(100_000), pytest.raises(RunError) as caught:
        run_once("digits", CHANGES, folder)
    assert str(caught.value) == f"{folder}/models/cloud_submodel.safetensors: {NO_ROOM}"
    assert f"checkpoint prepared is not saved: {NO_ROOM}" in caplog.messages
    assert not (folder / "results.json").exists()
    assert [path.name for path in (folder / "models").iterdir()] == []
    run_once("digits", CHANGES, folder, resume=True)
    assert left_by(folder) == left_by(tmp_path / "at-once")
