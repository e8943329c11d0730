"""The jobs of ``dccl search``: one candidate, by the strategy itself on a grid without Ray."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from dccl_flower.flower.numpy_client_app import numpy_client_app
from dccl_flower.learning.evaluate import Scorer, Scores
from dccl_flower.simulations.app.server_app import make_strategy
from dccl_flower.simulations.arms.central_arms import train_co_centrally
from dccl_flower.simulations.arms.report import SWING_ROUNDS, largest_swing
from dccl_flower.simulations.experiment import Experiment
from dccl_flower.simulations.jobs import note
from dccl_flower.simulations.local_grid import LocalGrid
from dccl_flower.simulations.prepared import prepared_cloud
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.device import DcCclClient


def run_candidate(
    experiment: Experiment, description: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Train one candidate and score it on images that nobody holds."""
    cloud, plan = prepared_cloud(experiment, note), experiment.plan
    scorer = cloud.scorer(experiment.unseen_loader(), plan.cloud_classes, plan.device_classes)
    started = time.monotonic()
    if description["kind"] == "central":
        train_co_centrally(experiment, cloud)
        scores, sent = [scorer.served(cloud.co_state())[0]], 0
    else:
        scores, sent = _federate(experiment, cloud, scorer)
    return {
        **vars(_mean(scores[-3:])),
        "swing": largest_swing([each.accuracy for each in scores]) or 0.0,
        "bytes_a_device": sent / experiment.conf.devices.count,
        "cloud_submodel": scorer.cloud_submodel().accuracy,
        "seconds": time.monotonic() - started,
    }


def _federate(experiment: Experiment, cloud: Cloud, scorer: Scorer) -> tuple[list[Scores], int]:
    """Run the rounds; return the scores of the last ones and the bytes sent."""
    conf = experiment.conf
    strategy = make_strategy(conf, cloud)
    co, control = experiment.device_modules()
    scores: list[Scores] = []

    def score(server_round: int, arrays: ArrayRecord) -> None:
        if server_round > conf.rounds.count - SWING_ROUNDS:
            scores.append(scorer.served(strategy.co_state(arrays))[0])

    with tempfile.TemporaryDirectory(prefix="dccl-") as store:
        app = numpy_client_app(lambda _: DcCclClient(co, control, experiment.device_loader, store))
        grid = LocalGrid(app, conf.devices.count)
        strategy.start(
            grid,  # type: ignore[arg-type]
            strategy.initial_arrays(),
            num_rounds=conf.rounds.count,
            evaluate_fn=score,
        )
    return scores, sum(strategy.ledger.totals.values())


def _mean(scores: list[Scores]) -> Scores:
    columns = zip(*(vars(each).values() for each in scores), strict=True)
    return Scores(*(sum(column) / len(scores) for column in columns))
