"""The jobs of ``dccl arms``: one arm with one seed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dccl_flower.learning.evaluate import Scores
from dccl_flower.simulations.arms.central_arms import train_base, train_co_centrally
from dccl_flower.simulations.experiment import Experiment
from dccl_flower.simulations.jobs import note
from dccl_flower.simulations.prepared import prepare, prepared_cloud
from dccl_flower.simulations.reports import versions
from dccl_flower.simulations.run.display import Display
from dccl_flower.simulations.run.runner import run_simulation
from dccl_flower.simulations.superlink import choose_port


def run_arm(experiment: Experiment, description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train and score an arm; return its scores and what they cost."""
    arm = description["arm"]
    facts = {"arm": arm, "seed": experiment.conf.seed, "versions": versions()}
    return {**facts, **KINDS[description["kind"]](arm, experiment, folder)}


def _prepared(arm: str, experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Score the cloud submodel or the mimic, with its fidelity."""
    cloud = experiment.cloud(lambda *_: None)
    started = time.monotonic()
    prepare(experiment, cloud, note)
    seconds = time.monotonic() - started
    scorer = cloud.scorer(
        experiment.test_loader(), experiment.plan.cloud_classes, experiment.plan.device_classes
    )
    if arm == "cloud-submodel":
        return _result(scorer.cloud_submodel(), seconds)
    fidelity = {side: asdict(each) for side, each in scorer.mimic_fidelity().items()}
    return {**_result(scorer.mimic(), seconds), "mimic_fidelity": fidelity}


def _base(arm: str, experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Train the uncut base model on the cloud's data or on all."""
    started = time.monotonic()
    scores = train_base(experiment, pooled=arm == "central-b")
    return _result(scores, time.monotonic() - started)


def _central(arm: str, experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Train the co-submodel on pooled data."""
    cloud = prepared_cloud(experiment, note)
    scorer = cloud.scorer(
        experiment.test_loader(), experiment.plan.cloud_classes, experiment.plan.device_classes
    )
    started = time.monotonic()
    train_co_centrally(experiment, cloud)
    scores, mimic_co = scorer.served(cloud.co_state())
    result = _result(scores, time.monotonic() - started)
    return {**result, "plug_in_gap": scores.accuracy - mimic_co}


def _federated(arm: str, experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Run the rounds through Flower and keep what the comparison needs of the results."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)  # what an interrupted run left
    with Display() as display:
        run_simulation(experiment.conf, run, choose_port(None), display)
    results = json.loads((run / "results.json").read_text())
    devices = experiment.conf.devices.count
    sent, rounds = 0.0, []
    for each in results["rounds"]:
        sent += (each["bytes_down"] + each["bytes_up"]) / devices
        rounds.append({"accuracy": each["accuracy"], "bytes_a_device": sent})
    final = results["final"]
    scores = Scores(*(final[name] for name in Scores.__dataclass_fields__))
    result = _result(scores, results["seconds"]["rounds"])
    more = {"plug_in_gap": final["plug_in_gap"], "bytes_a_device": sent, "rounds": rounds}
    return {**result, **more}


def _result(scores: Scores, seconds: float) -> dict[str, Any]:
    return {**asdict(scores), "seconds": seconds}


KINDS: dict[str, Callable[[str, Experiment, Path], dict[str, Any]]] = {
    "prepared": _prepared,
    "base": _base,
    "central": _central,
    "federated": _federated,
}
