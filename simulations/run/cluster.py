"""Before a run on a Ray cluster that is there already: does each node have what the run needs?

Runs as ``python -m dccl_flower.simulations.run.cluster ADDRESS FOLDER``: Ray then lives and ends in
a process of its own, and its nodes are sent :func:`lacks` itself, so that it works there too where
this package is missing.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dccl_flower.files import code_digest
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.environment import child_environment
from dccl_flower.simulations.superlink import RunError

CONNECT_SECONDS = 10.0
CHECK_SECONDS = 600.0  # the first to open the data may have to decode them


def check_cluster(address: str, folder: Path) -> int:
    """Return how many nodes train, if every one can run what a run directory's conf says.

    Raises RunError, which names the node and what it lacks.
    """
    _check_address(address)
    command = [sys.executable, "-m", "dccl_flower.simulations.run.cluster", address, str(folder)]
    try:
        done = subprocess.run(
            command,
            env=child_environment(),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise RunError(f"--ray-address {address}: no answer in {error.timeout:.0f} s") from error
    except (IndexError, ValueError) as error:
        told = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RunError(f"--ray-address {address}: {told}") from error
    if answer["lacks"]:
        raise RunError(f"--ray-address {address}: {answer['lacks']}")
    return int(answer["nodes"])


def _check_address(address: str) -> None:
    """Raise RunError where nobody listens there: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise RunError(f"--ray-address {address}: expected HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        told = getattr(error, "strerror", None) or error
        raise RunError(f"--ray-address {address}: {told}") from error


def lacks(folder: str, conf_file: str, digest: str) -> str:
    """Return in words what this node lacks for a run; nothing where it has all.

    It must need nothing of this module: on a node without this package it comes alone.
    """
    import os
    from pathlib import Path

    try:
        from dccl_flower.config import ConfError
        from dccl_flower.config_loading import load_conf
        from dccl_flower.files import code_digest
        from dccl_flower.simulations.experiment import open_experiment
    except ImportError as error:
        return f"has no dccl-flower ({error})"
    if code_digest() != digest:
        return "has another version of dccl-flower"
    conf = Path(folder) / conf_file
    if not conf.exists() or not os.access(folder, os.W_OK | os.X_OK):
        return f"cannot write to {folder}: the run directory must lie where every node sees it"
    try:
        open_experiment(load_conf(str(conf)))
    except ConfError as error:
        return f"cannot open the data: {error}"
    return ""


def main(address: str, folder: str) -> None:
    """Print as JSON how many nodes train, and what the first to lack something lacks."""
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    ask = ray.remote(lacks)
    asked = {}
    for node in alive:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ask.options(num_cpus=0, scheduling_strategy=there)
        asked[node["NodeID"]] = task.remote(folder, CONF_FILE, code_digest())
    for node in alive:
        if told := ray.get(asked[node["NodeID"]]):
            print(json.dumps({"lacks": f"node {node['NodeManagerAddress']} {told}"}))
            return
    print(json.dumps({"lacks": "" if alive else "no node has a CPU", "nodes": len(alive)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
