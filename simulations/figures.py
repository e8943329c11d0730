"""How the plots are left: as whole files, drawn without a screen or pyplot's global state."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from dccl_flower.files import write_aside


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture as PNG."""
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150, format="png"))


def save_plot(figure: Figure, path: Path) -> None:
    """Write a plot as PNG and, beside it, as SVG."""
    save_figure(figure, path)
    write_aside(path.with_suffix(".svg"), lambda aside: figure.savefig(aside, format="svg"))
