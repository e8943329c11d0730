"""Run the jobs of ``dccl sweep`` and write its report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from dccl_flower.config import Conf
from dccl_flower.files import write_aside, write_json
from dccl_flower.simulations.arms.arms import ArmTable
from dccl_flower.simulations.arms.comparison import check_planned, failures_of, run_jobs
from dccl_flower.simulations.arms.plots import plot_sweep
from dccl_flower.simulations.arms.sweep import Sweep, plan_sweep
from dccl_flower.simulations.arms.sweep_report import SweepComparison, markdown
from dccl_flower.simulations.jobs import raise_failures
from dccl_flower.simulations.split_words import split_words


def run_sweep(
    table: ArmTable, conf: Conf, sweep: Sweep, folder: Path, side_by_side: int, command: str
) -> None:
    """Run what is not done yet, then write and print the table over the values that are.

    Raises ConfError before anything runs, and RunError afterwards where a job failed or first
    scores differ.
    """
    planned = plan_sweep(table, conf, sweep, folder)
    distinct = {each.job.folder: each for each in planned.values()}
    check_planned(each for each in distinct.values() if each.conf.seed == sweep.seeds[0])
    last = sorted(distinct.values(), key=lambda each: each.job.builds_on is not None)
    outcomes = run_jobs([each.lay_down() for each in last], side_by_side)
    ended = {outcome.job.folder: outcome.result for outcome in outcomes}
    results = {}
    for (value, name, seed), each in planned.items():
        result = ended[each.job.folder]
        if name in sweep.arms and result is not None:
            results[value, name, seed] = result
    failures = failures_of(outcomes)
    if results:
        comparison = SweepComparison(table, sweep, results)
        failures += comparison.differing
        is_swept = sweep.key.split(".")[0] in ("split", "devices")
        held = "" if is_swept else split_words(asdict(conf))
        title = f"{sweep.key} on {conf.name}"
        click.echo(write_sweep(comparison, title, held, command, folder))
    click.echo(f"sweep: {folder}")
    raise_failures(failures)


def write_sweep(
    comparison: SweepComparison, title: str, held: str, command: str, folder: Path
) -> str:
    """Write the report and its plot, whose title says who ``held`` what; return the Markdown."""
    text = markdown(comparison, title, command)
    write_json(folder / "sweep.json", {"command": command, **comparison.content()})
    write_aside(folder / "sweep.md", text)
    plot_sweep(comparison, f"{title}\n{held}".strip(), folder / "sweep.png")
    return text
