"""The jobs of ``dccl arms``: one arm with one seed, run as ``dccl run`` would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dccl_flower.experiment import Experiment
from dccl_flower.simulations.app.in_process import run_here
from dccl_flower.simulations.experiment import check_devices
from dccl_flower.simulations.run.display import Display
from dccl_flower.simulations.run.runner import run_simulation
from dccl_flower.simulations.superlink import choose_port


def run_arm(experiment: Experiment, description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run an arm; return its scores, by round too, what they are held against, and their cost."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)  # what an interrupted run left
    with Display() as display:
        if check_devices(experiment):
            run_simulation(experiment.conf, run, choose_port(None), display)
        else:
            run_here(experiment, run, display)
    results = json.loads((run / "results.json").read_text())
    devices, final = experiment.conf.devices.count, results["final"]
    sent, rounds, first = 0.0, [], next(iter(final))
    for each in results["rounds"]:
        sent += (each["bytes_down"] + each["bytes_up"]) / devices
        rounds.append({first: each[first], "bytes_a_device": sent})
    cost = {"seconds": results["seconds"]["total"]}
    if sent:
        cost["bytes_a_device"] = sent
    kept = {key: results[key] for key in ("references", "versions")}
    return {"arm": description["arm"], "scores": final, "rounds": rounds, **cost, **kept}
