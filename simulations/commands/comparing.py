"""``dccl arms``, ``sweep``, ``search``, ``scale``, ``summary``, ``runs``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.commands.options import (
    CONF,
    FOLDER,
    IN_PROCESS,
    JOBS,
    OVERRIDES,
    PORT,
    POSITIVE,
    SEEDS,
    Overrides,
    comparison_folder,
)
from dccl_flower.simulations.reports import command_line


@click.command()
@CONF
@OVERRIDES
@SEEDS
@click.option("--arms", "names", help="Arms, separated by commas; the rows' own choice if none.")
@JOBS
@click.option("--output", type=FOLDER, help="Directory; runs/arms-CONF.")
@IN_PROCESS
def arms(
    conf: str,
    overrides: Overrides,
    seeds: str,
    names: str | None,
    jobs: int,
    output: Path | None,
    in_process: bool,
) -> None:
    """Compare methods and settings on CONF; what is done already is not done again."""
    from dccl_flower.simulations.arms.arms import load_arms, parse_arms, parse_seeds

    loaded = load_conf(conf, overrides)
    table = load_arms(loaded.arms.rows)
    chosen, numbers = parse_arms(names, table), parse_seeds(seeds)
    from dccl_flower.simulations.arms.comparison import run_arms

    folder = comparison_folder(output, f"arms-{Path(conf).stem}")
    flags = [] if chosen == table.by_default() else ["--arms", ",".join(chosen)]
    flags += ["--seeds", ",".join(map(str, numbers)), *(["--in-process"] if in_process else [])]
    command = command_line("arms", conf, overrides, flags)
    run_arms(table, loaded, chosen, numbers, folder, jobs, command, in_process)


@click.command()
@CONF
@click.argument("swept", metavar="KEY=V1,V2,...")
@OVERRIDES
@SEEDS
@click.option("--arms", "names", help="Arms, separated by commas; CONF itself if none.")
@JOBS
@click.option("--output", type=FOLDER, help="Directory; runs/sweep-CONF-KEY.")
def sweep(
    conf: str,
    swept: str,
    overrides: Overrides,
    seeds: str,
    names: str | None,
    jobs: int,
    output: Path | None,
) -> None:
    """Run CONF with each value of a key; what is done already is not done again."""
    from dccl_flower.simulations.arms.arms import load_arms, parse_arms, parse_seeds
    from dccl_flower.simulations.arms.sweep import Sweep, only_itself, parse_swept

    key, values = parse_swept(swept, overrides)
    loaded = load_conf(conf, overrides)
    stem = Path(conf).stem
    if names is None:
        table, loaded = only_itself(loaded, stem)
    else:
        table = load_arms(loaded.arms.rows)
    chosen = Sweep(key, values, parse_arms(names, table), parse_seeds(seeds))
    from dccl_flower.simulations.arms.sweep_run import run_sweep

    flags = [] if names is None else ["--arms", ",".join(chosen.arms)]
    flags += ["--seeds", ",".join(map(str, chosen.seeds))]
    command = command_line("sweep", conf, overrides, flags, [f"{key}={','.join(values)}"])
    folder = comparison_folder(output, f"sweep-{stem}-{key}")
    run_sweep(table, loaded, chosen, folder, jobs, command)


@click.command()
@CONF
@OVERRIDES
@JOBS
@click.option("--output", type=FOLDER, help="Directory; runs/search-CONF.")
def search(conf: str, overrides: Overrides, jobs: int, output: Path | None) -> None:
    """Search for the fusion that keeps most of what devices learn; the test set is not touched."""
    loaded = load_conf(conf, overrides)
    from dccl_flower.simulations.search.search import run_search

    folder = comparison_folder(output, f"search-{Path(conf).stem}")
    run_search(loaded, folder, jobs, command_line("search", conf, overrides))


@click.command()
@OVERRIDES
@click.option("--conf", default="scale", show_default=True, help="Configuration of the turn.")
@click.option(
    "--devices", default="10,100,1000,10000,100000", show_default=True, help="Populations."
)
@click.option("--workers", default="1,2", show_default=True, help="Numbers of Ray workers.")
@click.option("--cohort", type=POSITIVE, help="Devices a round; 50, or all if fewer.")
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Rounds.")
@click.option("--steps", type=POSITIVE, default=5, show_default=True, help="Steps a turn.")
@click.option(
    "--skip", default="", help="Of pfl, flower, reference, population: what to leave out."
)
@click.option("--output", type=FOLDER, help="Directory; runs/scale.")
@PORT
def scale(
    overrides: Overrides,
    conf: str,
    devices: str,
    workers: str,
    skip: str,
    output: Path | None,
    port: int | None,
    **counts: int,  # cohort, rounds, steps
) -> None:
    """Measure a device's turn over populations, against a bare loop, stock Flower and pfl."""
    from dccl_flower.simulations.scale import cases

    settings = cases.Settings(
        devices=cases.parse_counts("--devices", devices),
        workers=cases.parse_counts("--workers", workers),
        skip=cases.parse_skip(skip),
        **counts,
    )
    for case in cases.cases(settings):
        cases.case_conf(case, conf, overrides, settings)
    from dccl_flower.simulations.scale.benchmark import run_scale

    folder = comparison_folder(output, "scale")
    click.echo(run_scale(conf, overrides, settings, folder, port))
    click.echo(f"comparison: {folder}")


@click.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
def summary(folders: tuple[Path, ...]) -> None:
    """Print a Markdown table over run directories; those that differ by seed share a row."""
    from dccl_flower.simulations.summary import summarise

    click.echo(summarise(folders))


@click.command()
@click.argument("folder", default="runs", type=FOLDER)
def runs(folder: Path) -> None:
    """List the runs below FOLDER: which are running, done, failed, or can be resumed."""
    from dccl_flower.simulations.runs import runs_below, runs_table

    Console(highlight=False).print(runs_table(runs_below(folder), folder))
