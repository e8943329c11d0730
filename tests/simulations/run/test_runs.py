"""What ``dccl run`` prints and leaves."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from real_runs import (
    SMALL,
    assert_the_mimic_went_once_to_each_device,
    dccl,
    hash_in_process,
    model_hash,
    results_of,
)
from safetensors.torch import load_file

pytestmark = pytest.mark.integration


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


def test_the_command_prints_progress_table_and_paths(by_dccl):
    done, folder = by_dccl
    lines = done.stdout.splitlines()
    assert lines[:2] == ["preparing the data", "starting Flower"]
    assert "pretrain: 2 epochs done" in lines
    assert sum(line.startswith("round ") for line in lines) == 3
    assert f"run directory: {folder}" in lines
    assert "served" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
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
        *("conf", "seed", "data", "versions", "final", "references"),
        *("rounds", "faults", "wire", "seconds", "peak_rss_mb"),
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


def test_the_mimic_goes_once_to_each_distinct_device_across_workers(by_dccl):
    assert_the_mimic_went_once_to_each_device(by_dccl[1])


def test_a_run_in_process_ends_with_the_same_weights(by_dccl, tmp_path):
    role = "co_submodel"
    assert model_hash(by_dccl[1], role) == hash_in_process(tmp_path, role, *SMALL)
    state = load_file(by_dccl[1] / "models" / f"{role}.safetensors")
    assert any(name.endswith("running_var") for name in state)
