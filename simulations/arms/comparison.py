"""Run the jobs of ``dccl arms`` and ``dccl search`` and write their reports."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from dccl_flower.config_loading import absolute_paths, load_conf
from dccl_flower.files import write_aside, write_json
from dccl_flower.simulations.arms.arms import ARMS, arm_conf, arm_jobs
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.jobs import JobRunner, Outcome, Progress, raise_failures
from dccl_flower.simulations.run.runner import signals_as_interrupts

Say = Callable[[str], None]


def run_arms(
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
    from dccl_flower.simulations.arms.plots import plot_arms, plot_bytes
    from dccl_flower.simulations.arms.report import gap_curves, markdown, summarise_arms

    overrides = _with_absolute_paths(conf_name, overrides)
    for name in arms:
        open_experiment(arm_conf(name, conf_name, overrides, seeds[0]))
    jobs = arm_jobs(conf_name, overrides, arms, seeds, folder)
    say = _plain(console)
    progress = Progress(say, len(jobs), side_by_side)
    end = partial(_ended, progress)
    with signals_as_interrupts(), JobRunner(side_by_side, end) as runner:
        outcomes = runner.run(list(jobs.values()))
    results = {
        name: outcome.result
        for name, outcome in zip(jobs, outcomes, strict=True)
        if outcome.result is not None
    }
    if results:
        summary, curves = summarise_arms(results), gap_curves(results)
        conf = load_conf(conf_name, overrides)
        title = f"Arms of DC-CCL on {conf.name}"
        chosen = [] if list(arms) == list(ARMS) else ["--arms", ",".join(arms)]
        flags = [*chosen, "--seeds", ",".join(map(str, seeds))]
        command = command_line("arms", conf_name, overrides, flags)
        text = markdown(summary, results, title, command)
        versions = next(iter(results.values()))["versions"]
        write_json(folder / "arms.json", {"conf": conf_name, "versions": versions, "arms": summary})
        write_aside(folder / "arms.md", text)
        plot_arms(summary, title, folder / "arms.png")
        if curves:
            plot_bytes(curves, f"{title}: gap closed against bytes", folder / "bytes.png")
        console.print(text, markup=False, soft_wrap=True)
    say(f"comparison: {folder}")
    raise_failures([f"{o.job.title}: {o.failure}" for o in outcomes if o.result is None])


def run_search(
    conf_name: str, overrides: Sequence[str], folder: Path, side_by_side: int, console: Console
) -> None:
    """Search for a fusion and write ``search.json`` and ``search.md``.

    Raises ConfError where the configuration leaves no images to choose by.
    """
    from dccl_flower.simulations.search.report import markdown
    from dccl_flower.simulations.search.search import Search, num_jobs

    overrides = _with_absolute_paths(conf_name, overrides)
    conf = load_conf(conf_name, overrides)
    open_experiment(conf).unseen_loader()
    command = command_line("search", conf_name, overrides)
    say = _plain(console)
    progress = Progress(say, num_jobs(), side_by_side)
    folder.mkdir(parents=True, exist_ok=True)
    end = partial(_ended, progress)
    with signals_as_interrupts(), JobRunner(side_by_side, end) as runner:
        search = Search(conf_name, overrides, folder, runner)
        try:
            search.run()
        finally:  # half a search is worth reading too
            write_json(folder / "search.json", search.scored)
            text = markdown(search.scored, conf, command)
            write_aside(folder / "search.md", text)
    console.print(text, markup=False, soft_wrap=True)
    say(f"search: {folder}")


def command_line(
    verb: str, conf_name: str, overrides: Sequence[str], flags: Sequence[str] = ()
) -> str:
    """Return the command of a comparison, without this machine's paths."""
    data_set = Path(load_conf(conf_name, overrides).data.name).name
    hidden = {"data.path": f"data.path=PATH/TO/{data_set}", "devices.store": ""}
    shown = dict.fromkeys(hidden.get(each.split("=")[0], each) for each in overrides)
    return shlex.join(["dccl", verb, conf_name, *(each for each in shown if each), *flags])


def _with_absolute_paths(conf_name: str, overrides: Sequence[str]) -> list[str]:
    """Return the overrides with a data path that means the same in every process."""
    conf = absolute_paths(load_conf(conf_name, overrides))
    paths = {"data.path": conf.data.path, "devices.store": conf.devices.store}
    return [*overrides, *(f"{key}={path}" for key, path in paths.items() if path)]


def _plain(console: Console) -> Say:
    return lambda text: console.print(text, markup=False, soft_wrap=True)


def _ended(progress: Progress, outcome: Outcome) -> None:
    accuracy = (outcome.result or {}).get("accuracy", 0)
    progress.ended(outcome, f"{accuracy:.1%} in {outcome.seconds:.0f} s")
