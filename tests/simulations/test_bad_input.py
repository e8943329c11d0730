"""Every mistake of a user's gives one line and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import sys

import psutil
import pytest
from datasets import Dataset

from dccl_flower.simulations.cli import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory of its own, with the things that the cases refer to."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "results.json").write_text("{}")
    (tmp_path / "odd").mkdir()
    for split in ("train", "test"):
        rows = Dataset.from_dict({"picture": [1, 2], "kind": [0, 1]})
        rows.to_parquet(str(tmp_path / "odd" / f"{split}-0.parquet"))
    (tmp_path / "broken.yaml").write_text("rounds: [1\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_dccl(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dccl", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


def everything_below(folder):
    return sorted(path for path in folder.rglob("*"))


CASES = [
    (["run", "nosuch"], "conf 'nosuch': expected one of cifar10, coda_movielens"),
    (["run", "missing.yaml"], "conf 'missing.yaml': No such file"),
    (["run", "broken.yaml"], "conf 'broken.yaml': "),
    (["run", "list.yaml"], "conf 'list.yaml': expected a mapping"),
    (["run", "digits", "rounds.bogus=1"], "rounds.bogus: unknown key; allowed here: cloud_batch"),
    (
        ["run", "digits", "bogus=1"],
        "bogus: unknown key; allowed here: arms, control, data, devices",
    ),
    (["run", "digits", "rounds.count"], "override 'rounds.count': expected key=value"),
    (["run", "digits", "rounds.count=many"], "rounds.count=many: must be an integer"),
    (["run", "digits", "loss=mse"], "loss=mse: must be one of ce, prior_corrected"),
    (["run", "digits", "model.co_ratio=1.0"], "model.co_ratio=1.0: must lie between 0 and 1"),
    (["run", "digits", "model.co_ratio=0"], "model.co_ratio=0.0: must lie between 0 and 1"),
    (["run", "digits", "split.device_classes=[7,8,9]"], "class 7 is in split.cloud_classes too"),
    (["run", "digits", "split.device_classes=[9]"], "class 8 is in neither list"),
    (["run", "digits", "split.device_classes=[8,9,10]"], "class 10 is not among"),
    (["run", "digits", "devices.count=5000"], "devices.count=5000: there are only"),
    (["run", "digits", "devices.per_round=11"], "devices.per_round=11: must lie between 1 and 10"),
    (["run", "digits", "runtime.nodes=11"], "runtime.nodes=11: must lie between 1 and 10"),
    (["run", "digits", "data.path=empty"], "/empty: holds no train*.parquet"),
    (["run", "digits", "data.path=nowhere"], "/nowhere: no such folder"),
    (["run", "digits", "data.path=odd"], "data.image_column=image: the data have columns picture"),
    (["run", "digits", "model.base=resnet9000"], "model.base=resnet9000: unknown model; allowed"),
    (["run", "digits", "model.base=vgg16_cifar"], "model.base=vgg16_cifar: does not go with"),
    (
        ["run", "digits", "model.base=timm/resnet18", "model.shared_stem=true"],
        "model.shared_stem=true: conv1 is coupled to",
    ),
    (["run", "digits", "seed=${nope}"], "seed=${nope}: must be an integer"),
    (["run", "digits", "exemplars=100000"], "exemplars=100000: the cloud has"),
    (["run", "digits", "rounds.max_grad_norm=nan"], "rounds.max_grad_norm=nan: must be at least 0"),
    (["run", "digits", "--output", "n" * 300], "File name too long"),
    (["summary", "empty"], "empty: holds no results.json of a finished run"),
    (["summary", "taken"], "taken: holds no results.json of a finished run"),
    (["run", "digits", "model.co.name=timm/none"], "model.co.name=timm/none: unknown model"),
    (["run", "digits", "model.base=torchvision/resnet18"], "set data.rgb=true"),
    (["run", "digits", "--output", "file"], "file: is a file; expected a new directory"),
    (["run", "digits", "--output", "file/below"], "cannot be"),
    (["run", "digits", "--output", "taken"], "is not empty; expected a new directory"),
    (["run", "digits", "--seed", "one"], "Invalid value for '--seed': 'one'"),
    (["run", "digits", "--seed", "-1"], "seed=-1: must be at least 0"),
    (["run", "digits", "--workers", "0"], "runtime.workers=0: must be at least 1"),
    (["run", "digits", "--port", "99999"], "Invalid value for '--port'"),
    (
        ["run", "digits", "devices.store=here", "--ray-address", "127.0.0.1:6379"],
        "/here: not with --ray-address; there stores lie in the run directory",
    ),
    (["run", "digits", "--bogus"], "No such option"),
    (["arms", "digits", "--arms", "mimic,bogus"], "--arms 'bogus': unknown arm; allowed are cloud"),
    (["arms", "digits", "--seeds", "0,x"], "--seeds 'x': expected integers from 0 up"),
    (
        ["arms", "digits", "arms.changes.strikt=[loss=ce]"],
        "strikt: no such arm or group",
    ),
    (["arms", "digits", "arms.changes.strict=[rounds.count=99]"], "arm strict: 1584 steps"),
    (["arms", "digits", "arms.changes.strict=[bogus=1]"], "bogus: unknown key"),
    (["arms", "digits", "split.device_classes=[]"], "split.device_classes=[]: must name at least"),
    (["arms", "digits", "--output", "file"], "file is a file; expected a directory"),
    (["arms", "digits", "--output", "file/below"], "file is a file; expected a directory"),
    (["arms", "digits", "--jobs", "0"], "Invalid value for '--jobs'"),
    (["sweep", "digits"], "Missing argument 'KEY=V1,V2,...'"),
    (["sweep", "digits", "rounds.lr"], "sweep 'rounds.lr': expected key=value,value"),
    (["sweep", "digits", "rounds.lr=0.1,fast"], "rounds.lr=fast: must be a number"),
    (["sweep", "digits", "bogus=1,2"], "bogus: unknown key"),
    (["sweep", "digits", "bo/gus=1,2"], "bo/gus: unknown key"),
    (["sweep", "digits", "loss=ce", "loss=ce"], "sweep loss: is among the overrides too"),
    (["sweep", "digits", "seed=1,2"], "sweep seed: has an option of its own, --seeds"),
    (["sweep", "digits", "loss=ce", "--arms", "bogus"], "--arms 'bogus': unknown arm"),
    (["sweep", "digits", "exemplars=0,9", "--arms", "fedavg"], "exemplars: unknown key"),
    (["sweep", "digits", "exemplars=0,100000"], "exemplars=100000: the cloud has"),
    (["search", "digits"], "data.train_fraction=1.0: must leave 100 images"),
    (["search", "digits", "loss=mse"], "loss=mse: must be one of ce, prior_corrected"),
    (["run"], "Missing argument 'CONF'"),
    (["walk"], "No such command 'walk'"),
]


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=[" ".join(c[0])[:60] for c in CASES])
def test_a_mistake_is_one_line(arguments, message, place, monkeypatch, capsys):
    before = everything_below(place)
    code, errors = run_dccl(arguments, monkeypatch, capsys)
    assert code == 2
    assert errors.startswith("dccl: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert everything_below(place) == before
    assert psutil.Process().children(recursive=True) == []


def test_a_port_in_use_is_one_line(place, monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        before = everything_below(place)
        code, errors = run_dccl(["run", "digits", "--port", port], monkeypatch, capsys)
    assert (code, errors) == (2, f"dccl: --port {port}: Address already in use\n")
    assert everything_below(place) == before
    assert psutil.Process().children(recursive=True) == []


def test_a_folder_without_write_permission_is_one_line(place, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    code, errors = run_dccl(["run", "digits", "--output", "new"], monkeypatch, capsys)
    assert code == 2
    assert errors == f"dccl: output={place / 'new'}: {place} cannot be written\n"


def test_a_working_directory_that_is_gone_is_one_line(place, monkeypatch, capsys):
    (place / "gone").mkdir()
    monkeypatch.chdir(place / "gone")
    (place / "gone").rmdir()
    code, errors = run_dccl(["cost", "digits"], monkeypatch, capsys)
    assert (code, errors) == (2, "dccl: working directory: No such file or directory\n")
    monkeypatch.chdir(place)
