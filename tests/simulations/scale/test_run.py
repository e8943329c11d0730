"""``dccl scale`` through the real ``flwr run``: DC-CCL and stock Flower beside a bare loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

FLAGS = ["--conf", "digits", "--devices", "2", "--workers", "1", "--cohort", "2", "--rounds", "2"]
FLAGS += ["--steps", "2", "--skip", "pfl,reference"]
SMALL = ["pretrain.epochs=1", "distil.epochs=1"]


def test_systems_are_measured_side_by_side(tmp_path):
    command = [Path(sys.executable).parent / "dccl", "scale", *SMALL, *FLAGS, "--output", "out"]
    environment = {**os.environ, "DCCL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[3/3] DC-CCL, 2 devices, 1 worker: " in done.stdout
    assert f"comparison: {tmp_path / 'out'}" in done.stdout
    report = json.loads((tmp_path / "out" / "scale.json").read_text())
    rows = {(row["system"], row["control"], row["devices"]): row for row in report["rows"]}
    assert set(rows) == {
        *(("bare", "none", 2), ("bare", "mimic", 2)),
        *(("flower", "none", 2), ("dccl", "mimic", 2)),
    }
    for row in rows.values():
        assert row["later"]["cpu_s"] > 0
        assert row["later"]["turns"] == 2
        assert row["worker_mb"] > 100
        assert row["seconds_to_first_turn"] > 0
    ours, flower = rows["dccl", "mimic", 2], rows["flower", "none", 2]
    for row in (ours, flower):
        assert row["driver_mb"] > 100
        assert row["ray_mb"] > 100
        assert row["later"]["bytes"] > 1000
    # The mimic goes to the devices of the first round, and its workers have to start.
    assert ours["first"]["bytes"] > ours["later"]["bytes"]
    assert ours["first"]["new_share"] == 1
    assert (tmp_path / "out" / "scale.png").exists()
