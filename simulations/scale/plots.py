"""scale.png: a turn's cost, throughput and memory over the population, on log axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dccl_flower.simulations.figures import save_plot
from dccl_flower.simulations.scale.cases import BARE, DCCL, FLOWER, PFL, TITLES, in_words
from dccl_flower.simulations.scale.report import Row, measured

# Label, key of a row, factor.
PANELS = (
    ("CPU-ms a later turn", "later.cpu_s", 1000),
    ("device-turns a second", "turns_per_s", 1),
    ("MB of the largest worker", "worker_mb", 1),
)
COLOURS = {DCCL: "C0", FLOWER: "C1", PFL: "C2", BARE: "0.3"}
MARKERS = {1: "o", 2: "s"}
Kind = tuple[str, str, int]


def plot_scale(rows: Sequence[Row], path: Path) -> None:
    """Draw each system's curves over the population; those of one process as lines across.

    Where nothing has been measured, there is no plot.
    """
    kinds: dict[Kind, list[Row]] = {}
    for row in (row for row in rows if row.get("later")):
        kinds.setdefault((row["system"], row["control"], row["workers"]), []).append(row)
    if not kinds:
        return
    figure = Figure(figsize=(14, 5), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (label, key, factor) in zip(panels, PANELS, strict=True):
        for kind, of_kind in kinds.items():
            points = sorted((row["devices"], factor * measured(row, key)) for row in of_kind)
            _draw(axes, kind, [point for point in points if not math.isnan(point[1])])
        axes.set_xlabel("devices")
        axes.set_ylabel(label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _at_least_a_decade(axes)
        axes.grid(alpha=0.3, which="both")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle("Cost of a device's turn by population")
    save_plot(figure, path)


def _at_least_a_decade(axes: Axes) -> None:
    """Widen the range of values, so that noise looks like noise and ticks have room."""
    low, high = axes.get_ylim()
    factor = math.sqrt(max(1.0, 10 * low / high))
    axes.set_ylim(low / factor, high * factor)


def _draw(axes: Axes, kind: Kind, points: Sequence[tuple[int, float]]) -> None:
    if not points:
        return
    system, control, workers = kind
    line = "--" if (control == "mimic") == (system == BARE) else "-"
    title, colour = TITLES[system, control], COLOURS[system]
    devices, values = zip(*points, strict=True)
    if system in (BARE, PFL):
        axes.axhline(values[0], color=colour, linestyle=line, linewidth=1.2, label=title)
    else:
        label, marker = f"{title}, {in_words(workers)}", MARKERS.get(workers, "^")
        axes.plot(devices, values, color=colour, linestyle=line, marker=marker, label=label)
