"""Runs through the real ``flwr run``; each costs some 20 s, so each is asked many questions."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
FEW = ["devices.per_round=4", "rounds.count=3", "rounds.local_steps=3"]
SMALL = [*FEW, "pretrain.epochs=2", "distil.epochs=2"]
HETEROFL = [*FEW, "method.name=heterofl", "devices.profiles=phones_two_widths"]
HETEROFL.append("rounds.min_replies=0.25")


def environment(**more):
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **more}


def dccl(*arguments, cwd):
    command = [BIN / "dccl", "run", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def final_hash(folder):
    return model_hash(folder, "co_submodel")


def model_hash(folder, role):
    return hashlib.sha256((folder / "models" / f"{role}.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def by_dccl(tmp_path_factory):
    """Two workers, ten nodes, from a directory that is not the project's and holds its likes."""
    place = tmp_path_factory.mktemp("elsewhere")
    for package in ("dccl_flower", "dccl_flower.egg-info", "flwr", "torch"):
        (place / package).mkdir()
        (place / package / "__init__.py").write_text("raise ImportError('a foreign module')")
    (place / "dccl_flower.egg-info" / "PKG-INFO").write_text("Name: dccl-flower\nVersion: 0.0.1\n")
    done = dccl("digits", *SMALL, "--workers", "2", "--output", "out", cwd=place)
    assert done.returncode == 0, done.stderr
    return done, place / "out"


@pytest.fixture(scope="module")
def by_flwr(tmp_path_factory):
    """Plain ``flwr run .``, bare (two nodes, one worker), of two methods; then the example."""
    home = tmp_path_factory.mktemp("flwr")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = environment(
        FLWR_HOME=str(home),
        FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=port,
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
    )
    try:
        for name, changes in {"bare": SMALL, "heterofl": HETEROFL}.items():
            run_config = f"overrides='{' '.join(changes)}' output='{home / name}'"
            command = [BIN / "flwr", "run", ".", "--stream", "--run-config", run_config]
            done = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
            )
            assert (home / name / "results.json").exists(), done.stdout[-3000:]
        command = [BIN / "flwr", "run", ".", "--stream", "--run-config"]
        command.append(f"output='{home / 'example.json'}'")
        place = ROOT / "examples" / "own_project"
        subprocess.run(command, cwd=place, env=env, capture_output=True, check=False)
        yield home
    finally:
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if any("flower-superlink" in part for part in line) and port in line:
                for each in [*process.children(recursive=True), process]:
                    each.terminate()


def test_the_command_prints_progress_table_and_paths(by_dccl):
    done, folder = by_dccl
    lines = done.stdout.splitlines()
    assert lines[:2] == ["preparing the data", "starting Flower"]
    assert "pretrain: 2 epochs done" in lines
    assert sum(line.startswith("round ") for line in lines) == 3
    assert f"run directory: {folder}" in lines
    assert "served" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "workers", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_devices_that_share_messages_give_the_same_numbers(by_dccl, workers, tmp_path):
    shared = [*SMALL, "runtime.nodes=2", "runtime.devices_per_node=2", "devices.profiles=even.yaml"]
    tier = {"flops": 1e9, "memory_mb": 100, "down_mbps": 10, "up_mbps": 10, "availability": 1}
    fleet = {"tiers": [{"name": "board", "share": 1, "drop_out": 0, **tier}]}
    (tmp_path / "even.yaml").write_text(json.dumps(fleet))
    done = dccl("digits", *shared, "--workers", str(workers), "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "virtual s" in done.stdout
    alone, together = results_of(by_dccl[1]), results_of(tmp_path / "out")
    assert together["wire"]["co_up"] == alone["wire"]["co_up"]
    assert together["wire"]["co_down"] == alone["wire"]["co_down"]
    assert together["wire"]["mimic_down"] == alone["wire"]["mimic_down"]
    assert together["seconds"]["virtual"] > 0
    states = [
        load_file(folder / "models" / "co_submodel.safetensors")
        for folder in (by_dccl[1], tmp_path / "out")
    ]
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-6, rtol=1e-6)


def test_the_run_directory_holds_everything(by_dccl):
    _, folder = by_dccl
    names = {path.name for path in folder.iterdir()}
    assert names >= {"conf.yaml", "results.json", "rounds.csv", "curves.png", "tensorboard"}
    assert len((folder / "rounds.csv").read_text().splitlines()) == 4
    assert any((folder / "tensorboard").iterdir())
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 800
    models = {path.stem for path in (folder / "models").iterdir()}
    assert models == {"cloud_submodel", "mimic", "co_submodel"}


def test_results_have_the_promised_keys(by_dccl):
    results = results_of(by_dccl[1])
    assert list(results) == [
        *("conf", "seed", "versions", "final", "references"),
        *("rounds", "wire", "seconds", "peak_rss_mb"),
    ]
    scores = {"accuracy", "accuracy_cloud_classes", "accuracy_device_classes"}
    references = results["references"]
    assert set(references["cloud_submodel"]) == scores
    fidelity = {"logit_mse", "agreement", "kl"}
    parts = {f"{name}_{part}_classes" for name in fidelity for part in ("cloud", "device")}
    assert set(references["mimic"]) == scores | parts
    assert set(results["final"]) == scores | {"accuracy_mimic_co", "plug_in_gap"}
    assert [r["round"] for r in results["rounds"]] == [1, 2, 3]
    assert set(results["seconds"]) == {"pretrain", "distil", "rounds", "total"}
    assert all(value > 100 for value in results["peak_rss_mb"].values())


def test_bytes_of_the_rounds_add_up_to_the_ledger(by_dccl):
    results = results_of(by_dccl[1])
    down = sum(r["bytes_down"] for r in results["rounds"])
    up = sum(r["bytes_up"] for r in results["rounds"])
    wire = results["wire"]
    assert down == sum(n for kind, n in wire.items() if kind.endswith("_down"))
    assert up == sum(n for kind, n in wire.items() if kind.endswith("_up"))


def test_the_mimic_goes_once_to_each_distinct_device_across_workers(by_dccl, by_flwr):
    for folder in (by_dccl[1], by_flwr / "bare"):
        results = results_of(folder)
        distinct = {device for r in results["rounds"] for device in r["devices"]}
        size = (folder / "models" / "mimic.safetensors").stat().st_size
        assert 4 < len(distinct) <= 10
        assert results["wire"]["mimic_down"] == len(distinct) * size


def test_workers_and_nodes_do_not_change_the_numbers(by_dccl, by_flwr):
    folders = [by_dccl[1], by_flwr / "bare"]
    assert len({final_hash(folder) for folder in folders}) == 1
    accuracies = [[r["accuracy"] for r in results_of(f)["rounds"]] for f in folders]
    assert accuracies[0] == accuracies[1]
    state = load_file(folders[0] / "models" / "co_submodel.safetensors")
    assert any(name.endswith("running_var") for name in state)


def test_a_run_in_process_ends_with_the_same_weights(by_dccl, by_flwr, tmp_path):
    through_flower = {"co_submodel": by_dccl[1], "model": by_flwr / "heterofl"}
    for role, changes in {"co_submodel": SMALL, "model": HETEROFL}.items():
        here = ["--in-process", "--output", role]
        done = dccl("digits", *changes, *here, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert model_hash(tmp_path / role, role) == model_hash(through_flower[role], role)


def test_the_example_project_learns_its_device_classes(by_flwr):
    rounds = json.loads((by_flwr / "example.json").read_text())
    assert rounds["0"]["accuracy-device-classes"] < 0.05
    assert rounds["15"]["accuracy-device-classes"] > 0.2
    assert rounds["15"]["accuracy"] > rounds["0"]["accuracy"] + 0.02


def test_a_failed_run_tells_cause_and_log_in_one_line(tmp_path):
    done = dccl("digits", *SMALL, "rounds.lr=1e30", "--output", "out", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.search(r"device \d replied with a value in '.*' that is not finite", line)
    log = tmp_path / "out" / "flower.log"
    assert str(log) in line
    assert "Traceback" in log.read_text()
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_interrupt_stops_everything_it_started(tmp_path):
    command = [BIN / "dccl", "run", "digits", *SMALL, "rounds.count=500", "--output", "out"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        # Background jobs ignore the signal and hand that down; here it must be heeded.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (line := process.stdout.readline()).startswith("round 1/"):
            assert line, "the run ended before its first round"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 3
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    time.sleep(1)
    assert [each for each in family if each.is_running()] == []
