"""Plots of the comparison: all arms with error bars, and gap closed against bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

from dccl_flower.simulations.arms.arms import ARMS
from dccl_flower.simulations.figures import save_figure

BARS = (
    ("all classes", "accuracy", "C0"),
    ("cloud classes", "accuracy_cloud_classes", "C2"),
    ("device classes", "accuracy_device_classes", "C3"),
)


def plot_arms(summary: Mapping[str, Any], title: str, path: Path) -> None:
    """Draw each arm's accuracies over all and over each side's classes, with their deviation."""
    rows = list(summary.values())[::-1]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.62 * len(rows)), layout="constrained")
    height = 0.8 / len(BARS)
    for place, (label, key, colour) in enumerate(BARS):
        centres = [row + height * (1 - place) for row in range(len(rows))]
        means = [row[key]["mean"] for row in rows]
        spreads = [row[key]["std"] or 0.0 for row in rows]
        axes.barh(centres, means, height, xerr=spreads, color=colour, label=label, capsize=2)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize=9)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("test accuracy")
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=len(BARS), fontsize=9)
    save_figure(figure, path)


def plot_bytes(
    curves: Mapping[str, list[tuple[float, float, float]]], title: str, path: Path
) -> None:
    """Draw gap closed over the bytes a device has sent and received, with bands of deviation."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for place, (name, points) in enumerate(curves.items()):
        sent = [each / 1e6 for each, _, _ in points]
        low = [gap - spread for _, gap, spread in points]
        high = [gap + spread for _, gap, spread in points]
        axes.plot(sent, [gap for _, gap, _ in points], color=f"C{place}", label=ARMS[name].title)
        axes.fill_between(sent, low, high, color=f"C{place}", alpha=0.2, linewidth=0)
    axes.axhline(1, color="0.3", linestyle="--", linewidth=1.2, label="Central-M")
    axes.axhline(0, color="0.3", linestyle=":", linewidth=1.2, label="cloud submodel alone")
    axes.set_xlabel("MB a device, down and up")
    axes.set_ylabel("gap closed")
    axes.set_ylim(-0.6, 1.2)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    figure.suptitle(title)
    save_figure(figure, path)
