"""What the plots share: drawing without a screen, and leaving a whole file."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dccl_flower.files import write_aside


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure of pyplot as PNG and close it."""
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150, format="png"))
    plt.close(figure)
