"""Run the jobs of ``dccl search`` and write its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dccl_flower.config_loading import load_conf
from dccl_flower.files import write_aside, write_json
from dccl_flower.simulations.arms.arms import load_arms
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.jobs import JobRunner, Outcome, Progress
from dccl_flower.simulations.reports import command_line
from dccl_flower.simulations.run.runner import signals_as_interrupts
from dccl_flower.simulations.search.report import markdown
from dccl_flower.simulations.search.search import Search, num_jobs
from dccl_flower.simulations.search.space import load_space


def run_search(
    conf_name: str, overrides: Sequence[str], folder: Path, side_by_side: int, console: Console
) -> None:
    """Search and write ``search.json`` and ``search.md``.

    Raises ConfError where the configuration leaves no images to choose by.
    """
    conf = load_conf(conf_name, overrides)
    space = load_space(conf.method.name)
    open_experiment(conf).unseen_loader()

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    curves = sum(row.curve for row in load_arms(conf.arms.rows).arms.values())
    progress = Progress(say, num_jobs(space, curves), side_by_side)

    def ended(outcome: Outcome) -> None:
        score = (outcome.result or {}).get("score", 0)
        progress.ended(outcome, f"{score:.1%} in {outcome.seconds:.0f} s")

    folder.mkdir(parents=True, exist_ok=True)
    with signals_as_interrupts(), JobRunner(side_by_side, ended) as runner:
        search = Search(conf_name, list(overrides), folder, runner, space)
        try:
            search.run()
        finally:  # half a search is worth reading too
            text = markdown(search.scored, conf, command_line("search", conf_name, overrides))
            write_json(folder / "search.json", search.scored)
            write_aside(folder / "search.md", text)
    say(text)
    say(f"search: {folder}")
