"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

from dccl_flower.config import ConfError

Overrides = tuple[str, ...]
FOLDER, POSITIVE = click.Path(path_type=Path), click.IntRange(1)


def confs_like(ctx: click.Context, param: click.Parameter, given: str) -> list[str]:
    """Return the configurations that a shell may complete what is given to."""
    from dccl_flower.config_loading import conf_names

    return [name for name in conf_names() if name.startswith(given)]


def keys_like(ctx: click.Context, param: click.Parameter, given: str) -> list[str]:
    """Return the keys of the configuration before that a shell may complete what is given to."""
    from dccl_flower.simulations.key_table import key_rows

    try:
        rows = key_rows(ctx.params.get("conf") or "digits")
    except ConfError:
        return []
    return [f"{key}=" for key, _, _ in rows if key.startswith(given)]


CONF = click.argument("conf", shell_complete=confs_like)
OVERRIDES = click.argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE ...]", shell_complete=keys_like
)
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
IN_PROCESS = click.option(
    "--in-process", is_flag=True, help="Here, without Flower and Ray: for a debugger."
)
PORT = click.option(
    "--port", type=click.IntRange(1, 65535), help="SuperLink port; a free one by default."
)


def comparison_folder(given: Path | None, usual: str) -> Path:
    """Return the directory, which may hold an earlier part of the same comparison."""
    folder = (given or Path("runs") / usual).expanduser().resolve()
    above = next(path for path in [folder, *folder.parents] if path.exists())
    if not above.is_dir():
        raise ConfError(f"output={folder}: {above} is a file; expected a directory")
    return folder
