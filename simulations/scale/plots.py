"""scale.png: a turn's cost, throughput and memory over the population, on log axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dccl_flower.simulations.figures import save_figure
from dccl_flower.simulations.scale.cases import BARE, DCCL, FLOWER, PFL, system_title
from dccl_flower.simulations.scale.report import Row

PANELS = (
    ("CPU-ms a later turn", lambda row: 1000 * row["later"]["cpu_s"]),
    ("device-turns a second", lambda row: row["turns_per_s"]),
    ("MB of the largest worker", lambda row: row["worker_mb"]),
)
COLOURS = {DCCL: "C0", FLOWER: "C1", PFL: "C2", BARE: "0.3"}
MARKERS = {1: "o", 2: "s"}


def plot_scale(rows: Sequence[Row], path: Path) -> None:
    """Draw each system's curves over the population; those of one process as lines across."""
    measured = [row for row in rows if row.get("later")]
    figure = Figure(figsize=(14, 5), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (label, value_of) in zip(panels, PANELS, strict=True):
        for system, control, workers in dict.fromkeys(_kind(row) for row in measured):
            of_kind = [row for row in measured if _kind(row) == (system, control, workers)]
            points = sorted((row["devices"], value_of(row)) for row in of_kind)
            _draw(axes, system, control, workers, points)
        axes.set_xlabel("devices")
        axes.set_ylabel(label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _at_least_a_decade(axes)
        axes.grid(alpha=0.3, which="both")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle("Cost of a device's turn by population")
    save_figure(figure, path)


def _at_least_a_decade(axes: Axes) -> None:
    """Widen the range of values, so that noise looks like noise and ticks have room."""
    low, high = axes.get_ylim()
    factor = math.sqrt(max(1.0, 10 * low / high))
    axes.set_ylim(low / factor, high * factor)


def _kind(row: Row) -> tuple[str, str, int]:
    return row["system"], row["control"], row["workers"]


def _draw(
    axes: Axes, system: str, control: str, workers: int, points: Sequence[tuple[int, float | None]]
) -> None:
    known = [(devices, value) for devices, value in points if value is not None]
    if not known:
        return
    title, colour = system_title(system, control), COLOURS[system]
    line = "--" if (control == "mimic") == (system == BARE) else "-"
    if system in (BARE, PFL):
        axes.axhline(known[0][1], color=colour, linestyle=line, linewidth=1.2, label=title)
        return
    label = f"{title}, {workers} worker{'s' if workers > 1 else ''}"
    devices, values = zip(*known, strict=True)
    marker = MARKERS.get(workers, "^")
    axes.plot(devices, values, color=colour, linestyle=line, marker=marker, label=label)
