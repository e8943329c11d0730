"""``dccl arms`` through the real ``flwr run``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SMALL = [
    "devices.count=3",
    "pretrain.epochs=2",
    "distil.epochs=2",
    "rounds.count=2",
    "rounds.local_steps=12",
]
ARMS = "cloud-submodel,mimic,central-m,distr-d"


def dccl_arms(place, *more):
    command = [Path(sys.executable).parent / "dccl", "arms", "digits", *SMALL, *more]
    environment = {**os.environ, "DCCL_CACHE": str(place / "cache")}
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def test_arms_are_compared_resumed_and_reported(tmp_path):
    some = dccl_arms(tmp_path, "--seeds", "0", "--arms", "cloud-submodel,central-m")
    assert some.returncode == 0, some.stderr
    done = dccl_arms(tmp_path, "--seeds", "0", "--arms", ARMS, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("central-m, seed 0:") and " in 0 s" in line for line in lines)
    assert any(
        line.startswith("distr-d, seed 0:") and line.endswith("(all done)") for line in lines
    )

    folder = tmp_path / "runs" / "arms-digits"
    report = json.loads((folder / "arms.json").read_text())
    assert list(report["arms"]) == ARMS.split(",")
    distr_d = report["arms"]["distr-d"]
    # The cloud submodel went to every device: more than its parameters in bytes.
    assert distr_d["bytes_a_device"]["mean"] > 500_000
    low, high, distr = (
        report["arms"][name]["accuracy"]["mean"]
        for name in ("cloud-submodel", "central-m", "distr-d")
    )
    gap = (distr - low) / (high - low) if high > low else None
    assert distr_d["gap_closed"]["seeds"] == {"0": gap}
    text = (folder / "arms.md").read_text()
    assert "dccl arms digits devices.count=3" in text
    assert str(tmp_path) not in text
    assert (folder / "arms.png").exists()
    (run,) = folder.glob("jobs/distr-d-seed0-*/run")
    results = json.loads((run / "results.json").read_text())
    assert set(results["references"]["mimic"]) >= {"logit_mse_cloud_classes", "kl_device_classes"}
    assert results["rounds"][-1]["accuracy"] == distr_d["accuracy"]["mean"]
