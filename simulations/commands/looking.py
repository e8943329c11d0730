"""Commands that tell what there is, and run nothing."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from dccl_flower.config import ConfError
from dccl_flower.simulations.commands.options import CONF, POSITIVE


@click.command()
def confs() -> None:
    """List the configurations that come with the package."""
    from dccl_flower.simulations.key_table import conf_lines

    table = Table.grid(padding=(0, 2))
    for name, text in conf_lines():
        table.add_row(name, text)
    Console(highlight=False, markup=False).print(table)


@click.command()
@CONF
@click.argument("part", default="")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
def keys(conf: str, part: str, markdown: bool) -> None:
    """List the keys of CONF, those with PART in them, with their values and what is allowed."""
    from dccl_flower.simulations.key_table import key_rows, key_table

    rows = key_rows(conf, part)
    if not rows:
        raise ConfError(f"{part}: in no key of {conf}; dccl keys {conf} lists them")
    if markdown:
        click.echo(key_table(rows))
        return
    table = Table.grid("key", "value", "allowed", padding=(0, 2))
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--ratio", default="1/8", show_default=True, help="Share of the co-submodel.")
@click.option("--classes", type=POSITIVE, default=10, show_default=True, help="Classes.")
@click.option("--size", type=POSITIVE, help="Side of the images; the model's own if none.")
def split(models: tuple[str, ...], ratio: str, classes: int, size: int | None) -> None:
    """Cut each MODEL in two and print what the halves are; nothing is trained.

    A MODEL is one of ours, as vgg16_cifar, or timm/NAME or torchvision/NAME. Of several, one that
    cannot be cut has the reason in its row.
    """
    from dccl_flower.simulations.split_report import Half, parse_ratio, split_model, split_table

    share, found = parse_ratio(ratio), dict[str, dict[str, Half] | str]()
    for name in models:
        try:
            found[name] = split_model(name, share, classes, size)
        except ConfError as error:
            if len(models) == 1:
                raise
            found[name] = str(error)
    click.echo(split_table(found))
