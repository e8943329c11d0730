"""curves.png: scores by round against the lines that matter, and bytes below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dccl_flower.simulations.app.results import Results, virtual_seconds
from dccl_flower.simulations.figures import save_figure


def plot_curves(results: Results, path: Path) -> None:
    """Draw scores and bytes (MB) by round and write them as PNG.

    Scores that begin with the same word share a panel: accuracies here, gaps there. With device
    profiles a last panel shows those of the first over virtual time.
    """
    panels = score_panels(results)
    timed = bool(virtual_seconds(results.rounds))
    heights = [3, *[1] * len(panels), *[3] * timed]
    figure = Figure(figsize=(8, 1.75 * sum(heights)), layout="constrained")
    parts = figure.subplots(len(heights), 1, height_ratios=heights)
    rounds = [each.round for each in results.rounds]
    for axes, (stem, names) in zip(parts, panels.items(), strict=False):
        _draw_scores(axes, results, stem, names, rounds)
    _draw_bytes(parts[len(panels)], results, rounds)
    for axes in parts[1 : len(panels) + 1]:
        axes.sharex(parts[0])
    if timed and panels:
        taken = accumulate(each.facts.virtual_seconds or 0.0 for each in results.rounds)
        stem, names = next(iter(panels.items()))
        _draw_scores(parts[-1], results, stem, names, list(taken))
        parts[-1].set_xlabel("virtual seconds")
    conf = results.conf
    title = f"{conf['method']['name']} on {conf['name']}, seed {results.seed}: test set"
    figure.suptitle(title)
    handles, labels = parts[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    save_figure(figure, path)


def score_panels(results: Results) -> dict[str, list[str]]:
    """Return the names of the scores by their first word, in their order."""
    panels: dict[str, list[str]] = {}
    for name in results.final:
        panels.setdefault(name.split("_")[0], []).append(name)
    return panels


def _draw_scores(
    axes: Axes, results: Results, stem: str, names: Sequence[str], when: Sequence[float]
) -> None:
    for name in names:
        values = [each.scores[name] for each in results.rounds]
        axes.plot(when, values, marker="o", markersize=3, label=name.replace("_", " "))
    held = {model: each[stem] for model, each in results.references.items() if stem in each}
    for (model, value), style in zip(held.items(), cycle(("--", ":", "-."))):
        label = f"{model.replace('_', ' ')} alone"
        axes.axhline(value, color="0.3", linestyle=style, linewidth=1.2, label=label)
    gain = results.conf["target_gain"]
    if gain is not None and held:
        model, value = next(iter(held.items()))
        label = f"target: {model.replace('_', ' ')} + {100 * gain:.0f} points"
        axes.axhline(value + gain, color="0.6", linewidth=1.2, label=label)
    if all(0 <= each.scores[name] <= 1 for each in results.rounds for name in names):
        axes.set_ylim(0, 1.02)
    axes.set_ylabel(stem if len(names) > 1 else names[0].replace("_", " "))
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
    return [getattr(each.facts, field) / 1e6 for each in results.rounds]
