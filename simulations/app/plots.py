"""curves.png and .svg: scores by round against the lines that matter, and bytes below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dccl_flower.simulations.figures import save_plot
from dccl_flower.simulations.split_words import split_words


def plot_curves(results: dict[str, Any], path: Path) -> None:
    """Draw scores and bytes (MB) by round, from the content of results.json, as PNG and SVG.

    Scores that begin with the same word share a panel: accuracies here, gaps there. With device
    profiles a last panel shows those of the first over virtual time.
    """
    panels: dict[str, list[str]] = {}
    for name in results["final"]:
        panels.setdefault(name.split("_")[0], []).append(name)
    timed = "virtual" in results["seconds"] and bool(panels)
    heights = [3, *[1] * len(panels), *[3] * timed]
    figure = Figure(figsize=(8, 1.75 * sum(heights)), layout="constrained")
    parts = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    rounds = [row["round"] for row in results["rounds"]]
    for axes, stem in zip(parts, panels, strict=False):
        _draw_scores(axes, results, panels[stem], rounds)
    _draw_bytes(parts[len(panels)], results["rounds"])
    for axes in parts[1 : len(panels) + 1]:
        axes.sharex(parts[0])
    parts[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    if timed:
        taken = accumulate(row["virtual_seconds"] for row in results["rounds"])
        _draw_scores(parts[-1], results, next(iter(panels.values())), list(taken))
        parts[-1].set_xlabel("virtual seconds")
    conf = results["conf"]
    title = f"{conf['method']['name']} on {conf['name']}, seed {results['seed']}: test set"
    held = split_words(conf, results.get("data", {}).get("classes", ()))
    figure.suptitle(f"{title}\n{held}".strip())
    handles, labels = parts[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    save_plot(figure, path)


def _draw_scores(
    axes: Axes, results: dict[str, Any], names: Sequence[str], when: Sequence[float]
) -> None:
    stem = names[0].split("_")[0]
    drawn = {name: [row[name] for row in results["rounds"]] for name in names}
    for name, values in drawn.items():
        axes.plot(when, values, marker="o", markersize=3, label=name.replace("_", " "))
    held = {model: each[stem] for model, each in results["references"].items() if stem in each}
    for (model, value), style in zip(held.items(), cycle(("--", ":", "-."))):
        label = f"{model.replace('_', ' ')} alone"
        axes.axhline(value, color="0.3", linestyle=style, linewidth=1.2, label=label)
    gain = results["conf"]["target_gain"]
    if gain is not None and held:
        model, value = next(iter(held.items()))
        label = f"target: {model.replace('_', ' ')} + {100 * gain:.0f} points"
        axes.axhline(value + gain, color="0.6", linewidth=1.2, label=label)
    if all(0 <= value <= 1 for values in drawn.values() for value in values):
        axes.set_ylim(0, 1.02)
    axes.set_ylabel(stem if len(names) > 1 else names[0].replace("_", " "))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)


def _draw_bytes(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for shift, way in ((-0.2, "down"), (0.2, "up")):
        megabytes = [row[f"bytes_{way}"] / 1e6 for row in rows]
        axes.bar([row["round"] + shift for row in rows], megabytes, 0.4, label=way)
    axes.set(xlabel="round", ylabel="MB, all devices")
    axes.grid(alpha=0.3, axis="y")
    axes.margins(y=0.4)  # room above the bars
    axes.legend(fontsize=9, loc="upper right", ncols=2)
