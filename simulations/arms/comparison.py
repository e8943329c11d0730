"""Run the jobs of ``dccl arms`` and write its report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from dccl_flower.config_loading import load_conf
from dccl_flower.files import write_aside, write_json
from dccl_flower.simulations.arms.arms import ArmTable, arm_conf, arm_jobs
from dccl_flower.simulations.arms.plots import plot_arms, plot_bytes
from dccl_flower.simulations.arms.report import Comparison, markdown
from dccl_flower.simulations.experiment import check_devices, open_experiment
from dccl_flower.simulations.jobs import JobRunner, Outcome, Progress, raise_failures
from dccl_flower.simulations.reports import command_line
from dccl_flower.simulations.run.runner import signals_as_interrupts


def run_arms(
    table: ArmTable,
    conf_name: str,
    overrides: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    side_by_side: int,
    console: Console,
) -> None:
    """Run the arms that are not done yet, then write and print the comparison of those that are.

    Raises ConfError before anything runs, and RunError afterwards where an arm failed.
    """
    for name in arms:
        check_devices(open_experiment(arm_conf(table, name, conf_name, overrides, seeds[0])))
    jobs = arm_jobs(table, conf_name, overrides, arms, seeds, folder)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    ended = partial(_ended, Progress(say, len(jobs), side_by_side))
    with signals_as_interrupts(), JobRunner(side_by_side, ended) as runner:
        outcomes = runner.run(list(jobs.values()))
    results = {
        name: outcome.result
        for name, outcome in zip(jobs, outcomes, strict=True)
        if outcome.result is not None
    }
    if results:
        chosen = [] if list(arms) == list(table.arms) else ["--arms", ",".join(arms)]
        flags = [*chosen, "--seeds", ",".join(map(str, seeds))]
        command = command_line("arms", conf_name, overrides, flags)
        title = f"Arms on {load_conf(conf_name, overrides).name}"
        say(write_comparison(Comparison(table, results), title, command, folder))
    say(f"comparison: {folder}")
    raise_failures([f"{o.job.title}: {o.failure}" for o in outcomes if o.result is None])


def write_comparison(comparison: Comparison, title: str, command: str, folder: Path) -> str:
    """Write the report and its plots, and return it as Markdown."""
    text = markdown(comparison, title, command)
    versions = next(iter(comparison.results.values()))["versions"]
    content = {"command": command, "versions": versions, "arms": comparison.summary()}
    write_json(folder / "arms.json", content)
    write_aside(folder / "arms.md", text)
    plot_arms(comparison, title, folder / "arms.png")
    if curves := comparison.curves():
        plot_bytes(comparison, curves, f"{title}: gap closed against bytes", folder / "bytes.png")
    return text


def _ended(progress: Progress, outcome: Outcome) -> None:
    scores = (outcome.result or {}).get("scores", {})
    told = f"{next(iter(scores.values()), 0):.1%} in {outcome.seconds:.0f} s"
    progress.ended(outcome, told)
