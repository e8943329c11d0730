"""``dccl run``, and ``dccl cost`` before it."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.method import find_method
from dccl_flower.simulations.app.run_folder import conf_to_run
from dccl_flower.simulations.commands.options import (
    CONF,
    FOLDER,
    IN_PROCESS,
    OVERRIDES,
    PORT,
    Overrides,
    confs_like,
)
from dccl_flower.simulations.superlink import choose_port

EXAMPLES = """\b
Examples:
  dccl run digits
  dccl run digits rounds.count=30 devices.count=20 --seed 1
  dccl run digits method.name=fedavg --output runs/fedavg
  dccl run PATH/TO/my.yaml data.path=PATH/TO/images --gpu
  dccl run --resume RUN_DIR

dccl confs lists the configurations, dccl keys CONF the keys.
"""


@click.command(epilog=EXAMPLES)
@click.argument("conf", required=False, shell_complete=confs_like)
@OVERRIDES
@click.option("--resume", type=FOLDER, help="Directory of a stopped run: go on with it.")
@click.option("--seed", type=int, help="Seed of every random draw.")
@click.option("--output", type=FOLDER, help="New directory for the results.")
@click.option("--workers", type=int, help="Ray workers that train side by side.")
@click.option("--threads", type=int, help="Torch threads of each worker.")
@click.option("--gpu", flag_value="true", help="Train on the GPU.")
@PORT
@click.option("--ray-address", help="HOST:PORT of a Ray cluster, on whose nodes devices train.")
@IN_PROCESS
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


@click.command()
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
