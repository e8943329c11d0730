"""Plots of the comparisons: all arms with error bars, gap closed against bytes, a swept key."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from dccl_flower.simulations.arms.report import EPSILON, Comparison
from dccl_flower.simulations.arms.sweep_report import SweepComparison, shown_value
from dccl_flower.simulations.figures import save_plot

DECADES = 99.9  # values that lie two of them apart, but for rounding, want a log axis
LONG_WORD = 12
VISIBLE = 0.005  # of a whole axis: what is less shows no bar
MARKERS = "os^vD<>Pp*hX"


def plot_arms(comparison: Comparison, title: str, path: Path) -> None:
    """Draw each arm's scores of the first one's kind, with their deviation."""
    stem = comparison.scores[0].split("_")[0]
    bars = [name for name in comparison.scores if name.split("_")[0] == stem]
    rows = list(comparison.summary.values())[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(bars)
    for place, key in enumerate(bars):
        shift = height * ((len(bars) - 1) / 2 - place)
        # What an arm does not have, be it a score or seeds to differ by, is NaN and not drawn.
        means, spreads = (np.array([row[key][of] for row in rows], float) for of in ("mean", "std"))
        heights, color = np.arange(len(rows)) + shift, f"C{place}"
        axes.barh(heights, means, height, color=color, label=key.replace("_", " "))
        axes.errorbar(means, heights, xerr=spreads, fmt="none", ecolor="0.1", capsize=2)
        for at in heights[means < VISIBLE]:
            axes.text(0.004, at, "0 %", va="center", fontsize=7, color=color)
    across = comparison.summary.get(comparison.table.across or "")
    if across:
        line = {"color": "0.3", "linestyle": "--", "linewidth": 1.2, "label": across["title"]}
        axes.axvline(across[bars[0]]["mean"], **line)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize=9)
    axes.set(xlim=(0, 1), xlabel=f"test {stem}", axisbelow=True)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3, axis="x")
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    save_plot(figure, path)


def plot_bytes(comparison: Comparison, title: str, path: Path) -> None:
    """Draw gap closed over the bytes a device has sent and received, with bands of deviation."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for place, (name, points) in enumerate(comparison.curves.items()):
        sent, gaps, spreads = (np.array(values) for values in zip(*points, strict=True))
        axes.plot(sent / 1e6, gaps, color=f"C{place}", label=comparison.title(name))
        band = (gaps - spreads, gaps + spreads)
        axes.fill_between(sent / 1e6, *band, color=f"C{place}", alpha=0.2, linewidth=0)
    for level, arm, style in ((1, comparison.table.high, "--"), (0, comparison.table.low, ":")):
        label = comparison.title(arm)
        axes.axhline(level, color="0.3", linestyle=style, linewidth=1.2, label=label)
    axes.set(xlabel="MB a device, down and up", ylabel="gap closed", ylim=(-0.6, 1.2))
    axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    save_plot(figure, path)


def plot_epsilon(comparison: Comparison, title: str, path: Path) -> None:
    """Draw the first score over epsilon, a point an arm; those without privacy are lines."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(comparison.summary.values()):
        score, epsilon, color = row[comparison.scores[0]], row[EPSILON]["mean"], f"C{place}"
        if epsilon is None:
            axes.axhline(score["mean"], color=color, linestyle="--", label=row["title"])
        else:
            # Hollow and of several forms, since arms may coincide.
            look = {"fmt": MARKERS[place % len(MARKERS)], "mfc": "none", "ms": 8, "capsize": 3}
            bar = {"yerr": score["std"], "color": color, "label": row["title"], **look}
            axes.errorbar([epsilon], [score["mean"]], **bar)
    axes.set(xscale="log", xlabel="epsilon of the whole run, smaller is more private")
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted(StrMethodFormatter("{x:g}"))
    axes.set_ylabel(f"test {comparison.scores[0].replace('_', ' ')}")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    save_plot(figure, path)


def plot_sweep(comparison: SweepComparison, title: str, path: Path) -> None:
    """Draw the first score over the values, a line an arm; those that end the gaps are dashed.

    Numbers stand on an axis of numbers, which is logarithmic where they span two decades; other
    values stand side by side.
    """
    sweep, ends = comparison.sweep, (comparison.rows.low, comparison.rows.high)
    numbers = _numbers(sweep.values)
    places = dict(zip(sweep.values, numbers or range(len(sweep.values)), strict=True))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in sweep.arms:
        found = comparison.points(name)
        points = sorted((places[value], mean, std) for value, (mean, std) in found.items())
        if points:
            at, means, spreads = zip(*points, strict=True)
            style, label = "--o" if name in ends else "-o", comparison.rows.arms[name].title
            axes.errorbar(at, means, spreads, fmt=style, capsize=3, label=label)
    if numbers is None:
        words = [shown_value(value) for value in sweep.values]
        axes.set_xticks(range(len(words)), words)
        if max(map(len, words)) > LONG_WORD:
            axes.tick_params("x", rotation=20)
    elif min(numbers) > 0 and max(numbers) / min(numbers) >= DECADES:
        axes.set_xscale("log")
    elif all(number.is_integer() for number in numbers):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=sweep.key, ylabel=f"test {comparison.first.replace('_', ' ')}")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    save_plot(figure, path)


def _numbers(values: Sequence[str]) -> list[float] | None:
    """Return all values as numbers, None where one is none."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    return numbers if all(map(isfinite, numbers)) else None
