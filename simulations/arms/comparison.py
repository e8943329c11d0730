"""Run the jobs of ``dccl arms`` and write its report."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dccl_flower.config import Conf
from dccl_flower.experiment import Experiment
from dccl_flower.files import write_aside, write_json
from dccl_flower.simulations.app.in_process import run_anywhere
from dccl_flower.simulations.arms.arms import RUN_FOLDER, ArmJob, ArmTable, plan_arms
from dccl_flower.simulations.arms.by_device import plot_groups
from dccl_flower.simulations.arms.plots import plot_arms, plot_bytes, plot_epsilon
from dccl_flower.simulations.arms.report import EPSILON, Comparison, markdown
from dccl_flower.simulations.experiment import check_devices, open_experiment
from dccl_flower.simulations.jobs import Job, JobRunner, Outcome, Progress, raise_failures
from dccl_flower.simulations.run.display import Display
from dccl_flower.simulations.run.runner import signals_as_interrupts
from dccl_flower.simulations.split_words import split_words
from dccl_flower.simulations.superlink import choose_port


def run_arms(
    table: ArmTable,
    conf: Conf,
    arms: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    side_by_side: int,
    command: str,
    in_process: bool = False,
) -> None:
    """Run the arms that are not done yet, then write and print the comparison of those that are.

    Raises ConfError before anything runs, and RunError afterwards where an arm failed or first
    scores differ.
    """
    planned = plan_arms(table, conf, arms, seeds, folder, in_process=in_process)
    check_planned(each for (_, seed), each in planned.items() if seed == seeds[0])
    outcomes = run_jobs([each.lay_down() for each in planned.values()], side_by_side)
    ended = zip(planned, outcomes, strict=True)
    results = {key: outcome.result for key, outcome in ended if outcome.result is not None}
    failures = failures_of(outcomes)
    if results:
        comparison = Comparison(table, results)
        failures += comparison.differing
        title, held = f"Arms on {conf.name}", split_words(asdict(conf))
        click.echo(write_comparison(comparison, title, held, command, folder))
    click.echo(f"comparison: {folder}")
    raise_failures(failures)


def check_planned(planned: Iterable[ArmJob]) -> None:
    """Raise ConfError where models or devices do not go with the data.

    An arm that builds on a run which is not there yet is checked when its turn comes.
    """
    for each in planned:
        base = each.job.builds_on
        if base is None or base.result() is not None:
            check_devices(open_experiment(each.conf))


def run_jobs(jobs: Sequence[Job], side_by_side: int) -> list[Outcome]:
    """Run what is not done yet, say how each job ends, and return all outcomes in order."""
    progress = Progress(click.echo, len(jobs), side_by_side)
    with signals_as_interrupts(), JobRunner(side_by_side, progress.ended) as runner:
        return runner.run(jobs)


def failures_of(outcomes: Iterable[Outcome]) -> list[str]:
    """Return a line for each job that failed."""
    return [f"{each.job.title}: {each.failure}" for each in outcomes if each.result is None]


def run_arm(experiment: Experiment, description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run an arm as ``dccl run`` would, in a job of its own.

    Return its scores, by round too, what they are held against, and their cost.
    """
    run = folder / RUN_FOLDER
    shutil.rmtree(run, ignore_errors=True)  # what an interrupted run left
    with Display() as display:
        port = choose_port(None)
        results = run_anywhere(experiment, run, display, port, description["in_process"])
    sent, rounds, first = 0.0, [], next(iter(results["final"]))
    for each in results["rounds"]:
        sent += (each["bytes_down"] + each["bytes_up"]) / experiment.conf.devices.count
        rounds.append({first: each[first], "bytes_a_device": sent})
    return {
        "arm": description["arm"],
        "scores": results["final"],
        "rounds": rounds,
        "seconds": results["seconds"]["total"],
        **({"bytes_a_device": sent} if sent else {}),
        **({EPSILON: results["privacy"][EPSILON]} if "privacy" in results else {}),
        "references": results["references"],
        **({"devices": results["devices"]} if "devices" in results else {}),
        "versions": results["versions"],
    }


def write_comparison(
    comparison: Comparison, title: str, held: str, command: str, folder: Path
) -> str:
    """Write the report and its plots, whose titles say who ``held`` what; return the Markdown."""
    text = markdown(comparison, title, command)
    versions = next(iter(comparison.results.values()))["versions"]
    content = {"command": command, "versions": versions, "arms": comparison.summary}
    write_json(folder / "arms.json", content)
    write_aside(folder / "arms.md", text)
    title = f"{title}\n{held}".strip()
    plot_arms(comparison, title, folder / "arms.png")
    if comparison.curves:
        plot_bytes(comparison, title, folder / "bytes.png")
    if comparison.has_epsilon:
        plot_epsilon(comparison, title, folder / "epsilon.png")
    if comparison.by_device:
        plot_groups(comparison.by_device, comparison.scores[0], title, folder / "groups.png")
    return text
