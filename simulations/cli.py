"""The ``dccl`` command."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console

from dccl_flower.config import ConfError
from dccl_flower.config_loading import absolute_paths, load_conf

SIDE_BY_SIDE = "How many run side by side; a core each does best."
DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("dccl-flower"), prog_name="dccl")
def cli() -> None:
    """Device-cloud collaborative controlled learning (DC-CCL) on Flower."""


@cli.command()
@click.argument("conf")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--seed", type=int, help="Seed of every random draw.")
@click.option("--output", type=click.Path(path_type=Path), help="New directory for the results.")
@click.option("--workers", type=int, help="Ray workers that train side by side.")
@click.option("--threads", type=int, help="Torch threads of each worker.")
@click.option("--gpu", is_flag=True, help="Train on the GPU.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="SuperLink port; a free one by default."
)
def run(
    conf: str,
    overrides: tuple[str, ...],
    seed: int | None,
    output: Path | None,
    workers: int | None,
    threads: int | None,
    gpu: bool,
    port: int | None,
) -> None:
    """Run the experiment CONF: a name that comes with the package, or a path to a YAML file."""
    flags = {"seed": seed, "runtime.workers": workers, "runtime.threads": threads}
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    given += ["runtime.gpu=true"] if gpu else []
    loaded = absolute_paths(load_conf(conf, [*overrides, *given]))
    # Torch and Flower take seconds to import: only once the configuration is known to be good.
    from dccl_flower.simulations.app.run_folder import check_folder, default_folder
    from dccl_flower.simulations.experiment import check_devices, open_experiment
    from dccl_flower.simulations.run.display import Display, fidelity_line, results_table
    from dccl_flower.simulations.run.runner import run_simulation
    from dccl_flower.simulations.superlink import choose_port

    folder = (output or default_folder(loaded)).expanduser().resolve()
    check_folder(folder)
    chosen_port = choose_port(port)
    with Display() as display:
        display.note("preparing the data")
        check_devices(open_experiment(loaded))
        run_simulation(loaded, folder, chosen_port, display)
    console = Console(highlight=False)
    results = json.loads((folder / "results.json").read_text())
    console.print(results_table(results))
    console.print(fidelity_line(results), soft_wrap=True)
    console.print(f"run directory: {folder}", soft_wrap=True)
    for name in ("results.json", "rounds.csv", "curves.png", "conf.yaml", "models", "tensorboard"):
        console.print(f"  {name}")


@cli.command()
@click.argument("conf")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds, separated by commas.")
@click.option("--arms", "names", help="Arms, separated by commas; all by default.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help=SIDE_BY_SIDE)
@click.option("--output", type=click.Path(path_type=Path), help="Directory; runs/arms-CONF.")
def arms(
    conf: str,
    overrides: tuple[str, ...],
    seeds: str,
    names: str | None,
    jobs: int,
    output: Path | None,
) -> None:
    """Compare every arm of the paper on CONF; what is done already is not done again."""
    from dccl_flower.simulations.arms.arms import arm_conf, parse_arms, parse_seeds

    chosen, numbers = parse_arms(names), parse_seeds(seeds)
    for name in chosen:
        arm_conf(name, conf, overrides, numbers[0])
    from dccl_flower.simulations.arms.comparison import run_arms

    folder = _comparison_folder(output, f"arms-{Path(conf).stem}")
    run_arms(conf, overrides, chosen, numbers, folder, jobs, Console(highlight=False))


@cli.command()
@click.argument("conf")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help=SIDE_BY_SIDE)
@click.option("--output", type=click.Path(path_type=Path), help="Directory; runs/search-CONF.")
def search(conf: str, overrides: tuple[str, ...], jobs: int, output: Path | None) -> None:
    """Search for the fusion that keeps most of what devices learn; the test set is not touched."""
    load_conf(conf, overrides)
    from dccl_flower.simulations.arms.comparison import run_search

    folder = _comparison_folder(output, f"search-{Path(conf).stem}")
    run_search(conf, overrides, folder, jobs, Console(highlight=False))


@cli.command()
@click.argument("conf")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def cost(conf: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Count what the models of CONF cost to hold, train and send; nothing is trained."""
    loaded = load_conf(conf, overrides)
    from dccl_flower.simulations.cost_report import cost_report, cost_table

    report = cost_report(loaded)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        Console(highlight=False).print(cost_table(report))


@cli.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--conf", default="scale", show_default=True, help="Configuration of the turn.")
@click.option(
    "--devices", default="10,100,1000,10000,100000", show_default=True, help="Populations."
)
@click.option("--workers", default="1,2", show_default=True, help="Numbers of Ray workers.")
@click.option("--cohort", type=click.IntRange(1), help="Devices a round; 50, or all if fewer.")
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Rounds.")
@click.option("--steps", type=click.IntRange(1), default=5, show_default=True, help="Steps a turn.")
@click.option(
    "--skip", default="", help="Of pfl, flower, reference, population: what to leave out."
)
@click.option("--output", type=click.Path(path_type=Path), help="Directory; runs/scale.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="SuperLink port; a free one by default."
)
def scale(
    overrides: tuple[str, ...],
    conf: str,
    devices: str,
    workers: str,
    cohort: int | None,
    rounds: int,
    steps: int,
    skip: str,
    output: Path | None,
    port: int | None,
) -> None:
    """Measure a device's turn over populations, against a bare loop, stock Flower and pfl."""
    from dccl_flower.simulations.scale.cases import (
        Settings,
        case_conf,
        cases,
        parse_counts,
        parse_skip,
    )

    settings = Settings(
        parse_counts("--devices", devices),
        parse_counts("--workers", workers),
        cohort,
        rounds,
        steps,
        parse_skip(skip),
    )
    for case in cases(settings):
        case_conf(case, conf, overrides, settings)
    from dccl_flower.simulations.scale.benchmark import run_scale

    folder = _comparison_folder(output, "scale")
    report = run_scale(conf, overrides, settings, folder, port)
    Console(highlight=False).print(report, markup=False, soft_wrap=True)
    click.echo(f"comparison: {folder}")


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
def summary(folders: tuple[Path, ...]) -> None:
    """Print a Markdown table over run directories; those that differ by seed share a row."""
    from dccl_flower.simulations.summary import summarise

    click.echo(summarise(folders))


def main() -> None:
    """Run the command; every error is one line on stderr and an exit code.

    0: done. 1: the run failed. 2: bad usage or configuration. 130: interrupted.
    """
    try:
        cli(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except (ConfError, click.ClickException) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        sys.exit(_fail(text, BAD_USAGE))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_fail("interrupted", INTERRUPTED))
    except OSError as error:
        sys.exit(_fail(f"{error.filename or 'system'}: {error.strerror or error}", FAILED))
    except RuntimeError as error:
        from dccl_flower.simulations.superlink import RunError

        if not isinstance(error, RunError):
            raise
        sys.exit(_fail(str(error), FAILED))
    sys.exit(DONE)


def _comparison_folder(given: Path | None, usual: str) -> Path:
    """Return the directory, which may hold an earlier part of the same comparison."""
    folder = (given or Path("runs") / usual).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ConfError(f"output={folder}: is a file; expected a directory")
    return folder


def _fail(text: str, code: int) -> int:
    print(f"dccl: {' '.join(text.split())}", file=sys.stderr)
    return code
