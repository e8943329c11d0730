"""The ``dccl`` command."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.method import find_method
from dccl_flower.simulations.app.run_folder import conf_to_run
from dccl_flower.simulations.reports import command_line
from dccl_flower.simulations.superlink import RunError, choose_port

Overrides = tuple[str, ...]
DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
FOLDER, POSITIVE = click.Path(path_type=Path), click.IntRange(1)
CONF = click.argument("conf")
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
JOBS = click.option(
    "--jobs",
    type=POSITIVE,
    default=1,
    show_default=True,
    help="How many run side by side; a core each does best.",
)
SEEDS = click.option(
    "--seeds", default="0,1,2", show_default=True, help="Seeds, separated by commas."
)
PORT = click.option(
    "--port", type=click.IntRange(1, 65535), help="SuperLink port; a free one by default."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("dccl-flower"), prog_name="dccl")
def cli() -> None:
    """Device-cloud collaborative controlled learning (DC-CCL) on Flower."""
    try:
        Path.cwd()
    except OSError as error:  # torch would end the process without a word of ours
        raise ConfError(f"working directory: {error.strerror}") from error


@cli.command()
@click.argument("conf", required=False)
@OVERRIDES
@click.option("--resume", type=FOLDER, help="Directory of a stopped run: go on with it.")
@click.option("--seed", type=int, help="Seed of every random draw.")
@click.option("--output", type=FOLDER, help="New directory for the results.")
@click.option("--workers", type=int, help="Ray workers that train side by side.")
@click.option("--threads", type=int, help="Torch threads of each worker.")
@click.option("--gpu", flag_value="true", help="Train on the GPU.")
@PORT
@click.option("--ray-address", help="HOST:PORT of a Ray cluster, on whose nodes devices train.")
@click.option("--in-process", is_flag=True, help="Here, without Flower and Ray: for a debugger.")
def run(
    conf: str | None,
    overrides: Overrides,
    resume: Path | None,
    output: Path | None,
    port: int | None,
    ray_address: str | None,
    in_process: bool,
    seed: int | None,
    **runtime: int | str | None,  # workers, threads, gpu
) -> None:
    """Run the experiment CONF: a name that comes with the package, or a path to a YAML file."""
    flags = {"seed": seed, **{f"runtime.{key}": value for key, value in runtime.items()}}
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    loaded = conf_to_run(conf, [*overrides, *given], resume, output)
    if ray_address is not None and loaded.devices.store is not None:
        stores = f"devices.store={loaded.devices.store}: not with --ray-address"
        raise ConfError(f"{stores}; there stores lie in the run directory, which every node sees")
    from dccl_flower.simulations.app import run_folder
    from dccl_flower.simulations.app.in_process import run_anywhere
    from dccl_flower.simulations.experiment import open_experiment
    from dccl_flower.simulations.run.display import Display, other_scores, results_table

    folder = (resume or output or run_folder.default_folder(loaded)).expanduser().resolve()
    check = run_folder.check_folder if resume is None else run_folder.check_resumable
    check(folder)
    if ray_address is not None:  # a device's next message may come to another node
        loaded.devices.store = str(folder / "devices")
    in_process = in_process or bool(resume and not (folder / run_folder.LOG_FILE).exists())
    how = choose_port(port), in_process, ray_address, resume is not None
    with Display() as shown:
        shown.note("preparing the data")
        results = run_anywhere(open_experiment(loaded), folder, shown, *how)
    console = Console(highlight=False)
    console.print(results_table(results))
    for line in other_scores(results):
        console.print(line, soft_wrap=True)
    console.print(f"run directory: {folder}", soft_wrap=True)
    for name in ("results.json", "rounds.csv", "curves.png", "conf.yaml", "models", "tensorboard"):
        console.print(f"  {name}")


@cli.command()
@CONF
@OVERRIDES
@SEEDS
@click.option("--arms", "names", help="Arms, separated by commas; the rows' own choice if none.")
@JOBS
@click.option("--output", type=FOLDER, help="Directory; runs/arms-CONF.")
def arms(
    conf: str, overrides: Overrides, seeds: str, names: str | None, jobs: int, output: Path | None
) -> None:
    """Compare methods and settings on CONF; what is done already is not done again."""
    from dccl_flower.simulations.arms.arms import load_arms, parse_arms, parse_seeds

    loaded = load_conf(conf, overrides)
    table = load_arms(loaded.arms.rows)
    chosen, numbers = parse_arms(names, table), parse_seeds(seeds)
    from dccl_flower.simulations.arms.comparison import run_arms

    folder = _comparison_folder(output, f"arms-{Path(conf).stem}")
    flags = [] if chosen == table.by_default() else ["--arms", ",".join(chosen)]
    flags += ["--seeds", ",".join(map(str, numbers))]
    command = command_line("arms", conf, overrides, flags)
    run_arms(table, loaded, chosen, numbers, folder, jobs, command)


@cli.command()
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
    folder = _comparison_folder(output, f"sweep-{stem}-{key}")
    run_sweep(table, loaded, chosen, folder, jobs, command)


@cli.command()
@CONF
@OVERRIDES
@JOBS
@click.option("--output", type=FOLDER, help="Directory; runs/search-CONF.")
def search(conf: str, overrides: Overrides, jobs: int, output: Path | None) -> None:
    """Search for the fusion that keeps most of what devices learn; the test set is not touched."""
    loaded = load_conf(conf, overrides)
    from dccl_flower.simulations.search.search import run_search

    folder = _comparison_folder(output, f"search-{Path(conf).stem}")
    run_search(loaded, folder, jobs, command_line("search", conf, overrides))


@cli.command()
@CONF
@OVERRIDES
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def cost(conf: str, overrides: Overrides, as_json: bool) -> None:
    """Count what the models of CONF cost to hold, train and send; nothing is trained.

    Where devices only serve: what a batch takes them, its milliseconds measured.
    """
    loaded = load_conf(conf, overrides)
    from dccl_flower.simulations.cost_report import cost_report, cost_table
    from dccl_flower.simulations.serving_cost import serving_report, serving_table

    served = find_method(loaded.method.name).served
    report = cost_report(loaded) if served is None else serving_report(loaded, served)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    table = cost_table(report) if served is None else serving_table(report)
    Console(highlight=False).print(table)


@cli.command()
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

    folder = _comparison_folder(output, "scale")
    click.echo(run_scale(conf, overrides, settings, folder, port))
    click.echo(f"comparison: {folder}")


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
def summary(folders: tuple[Path, ...]) -> None:
    """Print a Markdown table over run directories; those that differ by seed share a row."""
    from dccl_flower.simulations.summary import summarise

    click.echo(summarise(folders))


@cli.command()
@click.argument("folder", default="runs", type=FOLDER)
def runs(folder: Path) -> None:
    """List the runs below FOLDER: which are running, done, failed, or can be resumed."""
    from dccl_flower.simulations.runs import runs_below, runs_table

    Console(highlight=False).print(runs_table(runs_below(folder), folder))


def main() -> None:
    """Run the command; every error is one line on stderr and an exit code.

    0: done. 1: the run failed. 2: bad usage or configuration. 130: interrupted.
    """
    # A notebook's backend, which fails matplotlib's import in an environment that lacks it.
    os.environ.pop("MPLBACKEND", None)
    try:
        cli(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except ConfError as error:
        _fail(str(error), BAD_USAGE)
    except click.ClickException as error:
        _fail(error.format_message(), BAD_USAGE)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", INTERRUPTED)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", FAILED)
    except RunError as error:
        _fail(str(error), FAILED)
    sys.exit(DONE)


def _comparison_folder(given: Path | None, usual: str) -> Path:
    """Return the directory, which may hold an earlier part of the same comparison."""
    folder = (given or Path("runs") / usual).expanduser().resolve()
    above = next(path for path in [folder, *folder.parents] if path.exists())
    if not above.is_dir():
        raise ConfError(f"output={folder}: {above} is a file; expected a directory")
    return folder


def _fail(text: str, code: int) -> NoReturn:
    print(f"dccl: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)
