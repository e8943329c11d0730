"""The page's figures, as SVG that stands in the page itself."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dccl_flower.simulations.page.judged import Judged

Runs = Mapping[str, dict[str, Any]]
MOST_NUMBERS = 20  # classes whose counts can still be read
COLUMNS = 8


def as_svg(figure: Figure) -> str:
    """Return a figure as an SVG element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()[stream.getvalue().index("<svg") :]


def curves(runs: Runs, score: str) -> Figure:
    """Draw a score by round, and over the megabytes that a device has passed."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    by_round, by_bytes = figure.subplots(1, 2, sharey=True)
    for label, results in runs.items():
        rows, devices = results["rounds"], results["conf"]["devices"]["count"]
        values = [row[score] for row in rows]
        by_round.plot([row["round"] for row in rows], values, marker="o", markersize=3, label=label)
        passed = accumulate((row["bytes_down"] + row["bytes_up"]) / 1e6 / devices for row in rows)
        by_bytes.plot(list(passed), values, marker="o", markersize=3)
    by_round.set(xlabel="round", ylabel=score.replace("_", " "))
    by_bytes.set(xlabel="MB a device")
    by_round.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_round.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (by_round, by_bytes):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def phases(runs: Runs) -> Figure:
    """Draw the seconds of each phase."""
    figure = Figure(figsize=(10, 0.8 + 0.5 * len(runs)), layout="constrained")
    axes, left = figure.subplots(), dict.fromkeys(runs, 0.0)
    names = dict.fromkeys(phase for each in runs.values() for phase in each["seconds"])
    for phase in (name for name in names if name not in ("total", "virtual")):
        widths = {label: each["seconds"].get(phase, 0.0) for label, each in runs.items()}
        axes.barh(list(runs), list(widths.values()), left=list(left.values()), label=phase)
        left = {label: left[label] + width for label, width in widths.items()}
    axes.set_xlabel("seconds")
    axes.invert_yaxis()
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def participation(results: dict[str, Any]) -> Figure:
    """Draw in how many rounds each device answered."""
    count = results["conf"]["devices"]["count"]
    answered = Counter(device for row in results["rounds"] for device in row["devices"])
    times = [answered[device] for device in range(count)]
    figure = Figure(figsize=(10, 2.2), layout="constrained")
    axes = figure.subplots()
    if count <= 100:
        axes.bar(range(count), times)
        axes.set(xlabel="device", ylabel="rounds")
    else:
        axes.hist(times, bins=range(max(times) + 2), align="left")
        axes.set(xlabel="rounds", ylabel="devices")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def confusion(judged: Judged) -> Figure:
    """Draw the confusion matrix, rows of true classes as shares."""
    counts, names = judged.confusion, judged.class_names
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_NUMBERS:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        for row, column in zip(*counts.nonzero(), strict=True):
            ink = "white" if shares[row, column] > 0.5 else "black"
            number = counts[row, column]
            axes.text(column, row, number, ha="center", va="center", color=ink, fontsize=8)
    axes.set(xlabel="given class", ylabel="true class")
    return figure


def taught(judged: Judged) -> Figure | None:
    """Draw device images that are right as served and wrong by the cloud alone; None for none."""
    rows, names = judged.taught(), judged.class_names
    if judged.alone is None or not len(rows):
        return None
    height = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(10, 1.6 * height), layout="constrained")
    for place, row in enumerate(rows):
        axes, image = figure.add_subplot(height, COLUMNS, place + 1), judged.images[row]
        axes.imshow(image, cmap="gray" if image.shape[2] == 1 else None, interpolation="nearest")
        axes.set_title(f"{names[judged.served[row]]}, not {names[judged.alone[row]]}", fontsize=8)
        axes.set_axis_off()
    return figure
