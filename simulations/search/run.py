"""Run the jobs of ``dccl search`` and write its report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dccl_flower.codecs import State
from dccl_flower.config_loading import load_conf
from dccl_flower.engine import RoundFacts
from dccl_flower.experiment import Experiment
from dccl_flower.files import write_aside, write_json
from dccl_flower.method import find_method
from dccl_flower.simulations.app.in_process import engine_of
from dccl_flower.simulations.arms.arms import load_arms
from dccl_flower.simulations.arms.report import SWING_ROUNDS, largest_swing
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.jobs import JobRunner, Progress
from dccl_flower.simulations.reports import command_line
from dccl_flower.simulations.run.runner import signals_as_interrupts
from dccl_flower.simulations.search.report import markdown
from dccl_flower.simulations.search.search import Search, num_jobs
from dccl_flower.simulations.search.space import load_space

LAST_ROUNDS = 3


def run_search(conf_name: str, overrides: Sequence[str], folder: Path, side_by_side: int) -> None:
    """Search and write ``search.json`` and ``search.md``.

    Raises ConfError where the configuration leaves no images to choose by.
    """
    conf = load_conf(conf_name, overrides)
    space = load_space(conf.method.name)
    open_experiment(conf).unseen_loader()
    headlines = sum(row.curve for row in load_arms(conf.arms.rows).arms.values())
    progress = Progress(click.echo, num_jobs(space, headlines), side_by_side)
    folder.mkdir(parents=True, exist_ok=True)
    with signals_as_interrupts(), JobRunner(side_by_side, progress.ended) as runner:
        search = Search(conf_name, overrides, folder, runner, space)
        try:
            search.run()
        finally:  # half a search is worth reading too
            text = markdown(search.scored, conf, command_line("search", conf_name, overrides))
            write_json(folder / "search.json", search.scored)
            write_aside(folder / "search.md", text)
    click.echo(text)
    click.echo(f"search: {folder}")


def run_candidate(
    experiment: Experiment, description: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Train one candidate, in a job of its own, and score it on images that nobody holds.

    Its scores are the means of its last rounds.
    """
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
