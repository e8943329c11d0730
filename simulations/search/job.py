"""One candidate of a search, in this process: the strategy itself on a grid without Ray.

``python -m dccl_flower.simulations.search.job FOLDER`` reads ``conf.yaml`` and ``job.json`` there.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from flwr.app import ArrayRecord

from dccl_flower.config_loading import load_conf
from dccl_flower.experiment import Experiment
from dccl_flower.flower.numpy_client_app import numpy_client_app
from dccl_flower.learning.evaluate import Scorer, Scores
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.app.server_app import make_strategy
from dccl_flower.simulations.arms.central_arms import train_co_centrally
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.jobs import Job, note, read_description
from dccl_flower.simulations.local_grid import LocalGrid
from dccl_flower.simulations.prepared import prepare
from dccl_flower.simulations.run.runner import signals_as_interrupts
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.device import DcCclClient

LATE_ROUNDS = 10


def main(folder: Path) -> None:
    """Train one candidate, score it on images that nobody holds, write ``result.json``."""
    job = read_description(folder)
    conf = load_conf(str(folder / CONF_FILE))
    torch.set_num_threads(conf.runtime.server_threads)
    experiment = open_experiment(conf)
    cloud = experiment.cloud(lambda *_: None)
    prepare(experiment, cloud, note)
    plan = experiment.plan
    scorer = cloud.scorer(experiment.unseen_loader(), plan.cloud_classes, plan.device_classes)
    started = time.monotonic()
    if job["kind"] == "central":
        train_co_centrally(experiment, cloud)
        scores, sent = [scorer.served(cloud.co_state())[0]], 0
    else:
        scores, sent = _federate(experiment, cloud, scorer)
    result = {
        **vars(_mean(scores[-3:])),
        "swing": largest_swing([each.accuracy for each in scores]),
        "bytes_a_device": sent / conf.devices.count,
        "cloud_submodel": scorer.cloud_submodel().accuracy,
        "seconds": time.monotonic() - started,
    }
    Job("", "search.job", folder, job["key"]).finish(result)


def largest_swing(accuracies: list[float]) -> float:
    """Return the largest change from one of the last rounds to the next."""
    late = accuracies[-LATE_ROUNDS:]
    return max((abs(b - a) for a, b in pairwise(late)), default=0.0)


def _federate(experiment: Experiment, cloud: Cloud, scorer: Scorer) -> tuple[list[Scores], int]:
    """Run the rounds; return the scores of the last ones and the bytes sent."""
    conf = experiment.conf
    strategy = make_strategy(conf, cloud)
    co, control = experiment.device_modules()
    scores: list[Scores] = []

    def score(server_round: int, arrays: ArrayRecord) -> None:
        if server_round > conf.rounds.count - LATE_ROUNDS:
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


if __name__ == "__main__":
    with signals_as_interrupts():
        main(Path(sys.argv[1]))
