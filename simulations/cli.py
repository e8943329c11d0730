"""The ``dccl`` command."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import click

from dccl_flower.config import ConfError
from dccl_flower.simulations.commands.comparing import arms, runs, scale, search, summary, sweep
from dccl_flower.simulations.commands.looking import confs, keys, split
from dccl_flower.simulations.commands.running import cost, run
from dccl_flower.simulations.commands.using import export, predict, report
from dccl_flower.simulations.superlink import RunError

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
COMMANDS = (
    *(run, arms, sweep, search, scale, summary, runs),
    *(export, predict, report, confs, keys, cost, split),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("dccl-flower"), prog_name="dccl")
def cli() -> None:
    """Device-cloud collaborative controlled learning (DC-CCL) on Flower."""
    try:
        Path.cwd()
    except OSError as error:  # torch would end the process without a word of ours
        raise ConfError(f"working directory: {error.strerror}") from error


for command in COMMANDS:
    cli.add_command(command)


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


def _fail(text: str, code: int) -> NoReturn:
    print(f"dccl: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)
