"""The jobs of ``dccl search``: one candidate, its rounds in the job's own process."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dccl_flower.codecs import State
from dccl_flower.engine import RoundFacts
from dccl_flower.experiment import Experiment
from dccl_flower.method import find_method
from dccl_flower.simulations.app.in_process import engine_of
from dccl_flower.simulations.arms.report import SWING_ROUNDS, largest_swing

LAST_ROUNDS = 3


def run_candidate(
    experiment: Experiment, description: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Train one candidate and score it on images that nobody holds: the mean of its last rounds."""
    conf = experiment.conf
    kind = find_method(conf.method.name)
    method = kind.server(replace(experiment, scores_unseen=True), lambda *_: None)
    method.prepare()
    started, scores = time.monotonic(), []

    def after_round(number: int, state: State, facts: RoundFacts) -> None:
        if number > conf.rounds.count - SWING_ROUNDS and number > 0:
            scores.append(dict(method.scores(state)))

    with tempfile.TemporaryDirectory(prefix="dccl-") as store:
        engine = engine_of(experiment, method, store)
        engine.run(conf.rounds.count, after_round)
    last, first = scores[-LAST_ROUNDS:], next(iter(scores[0]))
    means = {name: sum(each[name] for each in last) / len(last) for name in scores[0]}
    held = [each[first] for each in method.references().values() if first in each]
    return {
        "score": means[first],
        "scores": means,
        "swing": largest_swing([each[first] for each in scores]) or 0.0,
        "bytes_a_device": sum(engine.sent.values()) / conf.devices.count,
        "reference": held[0] if held else None,
        "seconds": time.monotonic() - started,
    }
