"""Commands that use what a finished run has trained: ``dccl export``, ``predict``, ``report``."""

from __future__ import annotations

from pathlib import Path

import click

from dccl_flower.simulations.commands.options import FOLDER, POSITIVE

FORMATS = ("torch", "onnx", "executorch-ready")


@click.command()
@click.argument("run_dir", type=FOLDER)
@click.option(
    "--to", type=click.Choice(FORMATS), default="torch", show_default=True, help="Format."
)
@click.option("--output", type=FOLDER, help="New directory; export-FORMAT in RUN_DIR.")
def export(run_dir: Path, to: str, output: Path | None) -> None:
    """Write the models of RUN_DIR as files that load without this package.

    They take images (N, C, H, W) in 0..1 and give logits: served is cloud + co, device what a
    device serves by itself, mimic + co.
    """
    from dccl_flower.simulations.exported import export_run

    for file in export_run(run_dir, to, output):
        click.echo(f"{file}  {file.stat().st_size / 1e6:.2f} MB")


@click.command()
@click.argument("run_dirs", nargs=-1, required=True, type=FOLDER, metavar="RUN_DIR...")
@click.option("--output", type=FOLDER, help="HTML file; report.html in the first RUN_DIR.")
def report(run_dirs: tuple[Path, ...], output: Path | None) -> None:
    """Put the runs on one HTML page, side by side: numbers, curves, classes and images."""
    from dccl_flower.simulations.page.page import write_report

    target = (output or run_dirs[0] / "report.html").expanduser().resolve()
    for note in write_report(run_dirs, target):
        click.echo(note)
    click.echo(f"report: {target}")


@click.command()
@click.argument("run_dir", type=FOLDER)
@click.argument("images", nargs=-1, required=True, type=FOLDER, metavar="IMAGE...")
@click.option("--model", default="served", show_default=True, help="Which model: served or device.")
@click.option("--top", type=POSITIVE, default=3, show_default=True, help="Classes to tell.")
@click.option("--show", type=FOLDER, metavar="FILE", help="Draw the images and classes, as PNG.")
def predict(
    run_dir: Path, images: tuple[Path, ...], model: str, top: int, show: Path | None
) -> None:
    """Tell the likeliest classes of each IMAGE by the model of RUN_DIR."""
    from dccl_flower.simulations.predicted import draw_predictions, predict_images

    predictions = predict_images(run_dir, images, model, top)
    for each in predictions:
        told = ", ".join(f"{name} {share:.1%}" for name, share in each.classes)
        click.echo(f"{each.image}: {told}")
    if show is not None:
        draw_predictions(predictions, show)
        click.echo(f"picture: {show}")
