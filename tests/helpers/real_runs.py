"""Runs through the real ``flwr run``; each costs some 20 s, so each is asked many questions."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
FEW = ["devices.per_round=4", "rounds.count=3", "rounds.local_steps=3"]
SMALL = [*FEW, "pretrain.epochs=2", "distil.epochs=2"]


def environment(**more):
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **more}


def dccl(*arguments, cwd):
    command = [BIN / "dccl", "run", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )


def left_of(processes):
    """Return those that still run; one that has ended may wait for its parent to ask."""
    return [each for each in processes if each.is_running() and not _is_zombie(each)]


def _is_zombie(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def model_hash(folder, role):
    return hashlib.sha256((folder / "models" / f"{role}.safetensors").read_bytes()).hexdigest()


def run_in_process(place, *changes, conf="digits"):
    """Return the folder of the same run without Flower and Ray."""
    folder = f"here-{conf}"
    done = dccl(conf, *changes, "--in-process", "--output", folder, cwd=place)
    assert done.returncode == 0, done.stderr
    return place / folder


def hash_in_process(place, role, *changes):
    """Return the hash of what the same run ends with without Flower and Ray."""
    return model_hash(run_in_process(place, *changes), role)


def assert_the_mimic_went_once_to_each_device(folder):
    results = results_of(folder)
    distinct = {device for r in results["rounds"] for device in r["devices"]}
    size = (folder / "models" / "mimic.safetensors").stat().st_size
    assert 4 < len(distinct) <= 10
    assert results["wire"]["mimic_down"] == len(distinct) * size
