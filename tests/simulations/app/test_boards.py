"""What a run measures goes to each board that the configuration names."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.app.boards import Boards, RunFacts, flat

LOSSES = [(1, 0.5), (2, 0.25)]


def filled(folder, *names, after=0):
    """Return the boards after two epochs of pretraining and three rounds."""
    conf = load_conf("digits", [f"runtime.loggers=[{','.join(names)}]"])
    boards = Boards(RunFacts(conf, folder, after))
    for epoch, loss in LOSSES if after == 0 else []:
        boards.log({"pretrain/loss": loss}, epoch, "pretrain")
    for number in range(after + 1, after + 4):
        boards.log({"test/accuracy": number / 10}, number)
    boards.close()


def test_tensorboard_has_rounds_and_losses(tmp_path):
    filled(tmp_path, "tensorboard")
    for folder, name, expected in (
        (tmp_path / "tensorboard", "test/accuracy", [(1, 0.1), (2, 0.2), (3, 0.3)]),
        (tmp_path / "tensorboard" / "preparation", "pretrain/loss", LOSSES),
    ):
        events = EventAccumulator(str(folder)).Reload().Scalars(name)
        assert [(each.step, each.value) for each in events] == [
            (step, pytest.approx(value)) for step, value in expected
        ]


def test_mlflow_has_configuration_rounds_and_losses_of_one_run_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    filled(tmp_path, "mlflow")
    filled(tmp_path, "mlflow", after=3)
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("dccl-flower").experiment_id])
    assert run.info.run_name == "digits, dc_ccl, seed 0"
    assert run.info.status == "FINISHED"
    assert run.data.params["rounds.count"] == "15"
    assert run.data.params["data.path"] == "None"
    history = client.get_metric_history(run.info.run_id, "test/accuracy")
    assert [each.step for each in history] == [1, 2, 3, 4, 5, 6]
    losses = client.get_metric_history(run.info.run_id, "pretrain/loss")
    assert [(each.step, each.value) for each in losses] == LOSSES


def test_weights_and_biases_are_given_the_same(tmp_path, monkeypatch):
    logged, begun, ended = [], [], []
    run = SimpleNamespace(log=logged.append, finish=lambda exit_code: ended.append(exit_code))
    wandb = SimpleNamespace(init=lambda **given: begun.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    filled(tmp_path, "wandb")
    assert begun[0]["config"]["seed"] == 0
    assert logged[0] == {"pretrain/loss": 0.5, "pretrain": 1}
    assert logged[-1] == {"test/accuracy": 0.3, "round": 3}
    assert ended == [0]


def test_a_board_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    told = r'^runtime.loggers=mlflow: mlflow is not installed; pip install "dccl-flower\[mlflow\]"$'
    with pytest.raises(ConfError, match=told):
        filled(tmp_path, "mlflow")


def test_mlflow_needs_to_be_told_where(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfError, match=r"^runtime.loggers=mlflow: needs MLFLOW_TRACKING_URI in"):
        filled(tmp_path, "mlflow")


def test_a_board_that_fails_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError("server away")

    ended = []
    run = SimpleNamespace(log=fail, finish=lambda exit_code: ended.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    filled(tmp_path, "wandb", "tensorboard")
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "runtime.loggers: wandb is left out from now on (server away)"
    assert ended == []
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(events.Scalars("test/accuracy")) == 3


def test_a_run_that_fails_is_said_to_have_failed(tmp_path, monkeypatch):
    ended = []
    run = SimpleNamespace(log=print, finish=lambda exit_code: ended.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    conf = load_conf("digits", ["runtime.loggers=[wandb]"])
    with suppress(KeyboardInterrupt), Boards(RunFacts(conf, tmp_path, 0)):
        raise KeyboardInterrupt
    assert ended == [1]


def test_without_boards_nothing_is_written(tmp_path):
    filled(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_keys_are_those_of_the_command_line():
    assert flat({"a": {"b": 1, "c": {}}, "d": None, "e": ["x"], "f": "", "g": True}) == {
        "a.b": 1,
        "a.c": "{}",
        "d": "None",
        "e": "['x']",
        "f": "''",
        "g": True,
    }
