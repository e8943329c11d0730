"""curves.png: accuracy by round against the lines that matter, and bytes below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dccl_flower.simulations.app.results import Results, virtual_seconds
from dccl_flower.simulations.figures import save_figure


def plot_curves(results: Results, path: Path) -> None:
    """Draw accuracies (%) and bytes (MB) by round and write them as PNG.

    With device profiles a third part shows accuracies over virtual time.
    """
    timed = bool(virtual_seconds(results.rounds))
    heights = [3, 1, 3] if timed else [3, 1]
    figure, parts = plt.subplots(
        len(heights),
        1,
        figsize=(8, 11 if timed else 7),
        height_ratios=heights,
        layout="constrained",
    )
    top, bottom = parts[0], parts[1]
    bottom.sharex(top)
    rounds = [r.round for r in results.rounds]
    _draw_accuracies(top, results, rounds)
    _draw_bytes(bottom, results, rounds)
    if timed:
        seconds = list(accumulate(r.virtual_seconds or 0.0 for r in results.rounds))
        _draw_accuracies(parts[2], results, seconds)
        parts[2].set_xlabel("virtual seconds")
    name = results.conf["name"]
    figure.suptitle(f"DC-CCL on {name}, seed {results.seed}: cloud + co on the test set")
    handles, labels = top.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    save_figure(figure, path)


def _draw_accuracies(axes: Axes, results: Results, when: Sequence[float]) -> None:
    curves = {
        "all classes": ("C0", [r.accuracy for r in results.rounds]),
        "cloud classes": ("C2", [r.accuracy_cloud_classes for r in results.rounds]),
        "device classes": ("C3", [r.accuracy_device_classes for r in results.rounds]),
    }
    for label, (colour, values) in curves.items():
        axes.plot(when, values, color=colour, marker="o", markersize=3, label=label)
    cloud_only = results.cloud_submodel.accuracy
    lines = {
        "cloud submodel alone": (cloud_only, "--"),
        "mimic alone": (results.mimic.accuracy, ":"),
    }
    if (gain := results.conf["target_gain"]) is not None:
        lines[f"target: cloud submodel + {100 * gain:.0f} points"] = (cloud_only + gain, "-.")
    for label, (value, style) in lines.items():
        axes.axhline(value, color="0.3", linestyle=style, linewidth=1.2, label=label)
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)


def _draw_bytes(axes: Axes, results: Results, rounds: Sequence[int]) -> None:
    axes.bar([r - 0.2 for r in rounds], _megabytes(results, "bytes_down"), 0.4, label="down")
    axes.bar([r + 0.2 for r in rounds], _megabytes(results, "bytes_up"), 0.4, label="up")
    axes.set_xlabel("round")
    axes.set_ylabel("MB, all devices")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=9)


def _megabytes(results: Results, field: str) -> list[float]:
    return [getattr(r, field) / 1e6 for r in results.rounds]
