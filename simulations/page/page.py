"""Put numbers, figures and the configuration of runs on one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib

from dccl_flower.config import ConfError
from dccl_flower.files import write_aside
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.page import drawings
from dccl_flower.simulations.page.drawings import as_svg
from dccl_flower.simulations.page.judged import Judged, judge_run
from dccl_flower.simulations.summary import read_results

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
"""


def write_report(folders: Sequence[Path], output: Path) -> list[str]:
    """Write the page of finished runs, and return a line for each whose images are not there.

    Raises ConfError for a folder without a finished run, and where runs share no score.
    """
    runs = {label: read_results(folder) for label, folder in _labelled(folders).items()}
    shared = set.intersection(*(set(each["final"]) for each in runs.values()))
    scores = [name for name in next(iter(runs.values()))["final"] if name in shared]
    if not scores:
        raise ConfError(f"{folders[-1]}: has no score in common with {folders[0]}")
    parts = [_heading("Numbers", _table(_numbers(runs), list(runs)))]
    with matplotlib.rc_context({"svg.hashsalt": "dccl", "svg.fonttype": "none"}):
        parts.append(_heading("By round", as_svg(drawings.curves(runs, scores[0]))))
        parts.append(_heading("Time by phase", as_svg(drawings.phases(runs))))
        notes: list[str] = []
        for label, folder in _labelled(folders).items():
            parts.append(_one_run(label, runs[label], folder, notes))
    title = ", ".join(runs)
    body = f"<h1>{escape(title)}</h1>\n" + "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'
    write_aside(output, page)
    return notes


def _labelled(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by their names, or by more of their paths where names are the same."""
    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = [str(folder) for folder in folders]
    return dict(zip(labels, folders, strict=True))


def _one_run(label: str, results: dict[str, Any], folder: Path, notes: list[str]) -> str:
    parts = []
    if any(row["devices"] for row in results["rounds"]):
        parts.append(
            _heading("Rounds that devices answered", as_svg(drawings.participation(results)), 3)
        )
    try:
        judged = judge_run(folder)
    except ConfError as error:
        notes.append(str(error))
        parts.append(f"<p>No pictures of classes: {escape(str(error))}</p>")
    else:
        parts += _of_classes(judged)
    conf = escape((folder / CONF_FILE).read_text(encoding="utf-8"))
    parts.append(f"<details><summary>conf.yaml</summary><pre>{conf}</pre></details>")
    return _heading(label, "\n".join(parts))


def _of_classes(judged: Judged) -> Iterable[str]:
    counts = judged.confusion
    rows = {
        name: [f"{counts[place, place] / max(1, counts[place].sum()):.1%}", _side(judged, place)]
        for place, name in enumerate(judged.class_names)
    }
    yield _heading("Classes", _table(rows, ["accuracy", "held by"]), 3)
    yield _heading("Confusion", as_svg(drawings.confusion(judged)), 3)
    if (shown := drawings.taught(judged)) is not None:
        yield _heading("What the devices' data taught the cloud", as_svg(shown), 3)


def _side(judged: Judged, label: int) -> str:
    sides = zip(("cloud", "devices"), judged.sides, strict=True)
    return " and ".join(name for name, classes in sides if label in classes)


def _numbers(runs: Mapping[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Return rows of the numbers of results.json, a cell a run."""
    found: dict[str, dict[str, str]] = {}

    def put(label: str, name: str, text: str) -> None:
        found.setdefault(name.replace("_", " "), {})[label] = text

    for label, results in runs.items():
        for name, value in results["final"].items():
            put(label, name, _number(value))
        for model, scores in results["references"].items():
            for name, value in scores.items():
                put(label, f"{model}: {name}", _number(value))
        for kind, count in results["wire"].items():
            put(label, f"{kind}, MB", f"{count / 1e6:.2f}")
        for phase, seconds in results["seconds"].items():
            put(label, f"{phase}, s", f"{seconds:.1f}")
        for part, megabytes in results["peak_rss_mb"].items():
            put(label, f"peak memory of the {part}, MB", f"{megabytes:.0f}")
        for fault, count in results["faults"].items():
            put(label, f"faults: {fault}", str(count))
    return {name: [cells.get(label, "") for label in runs] for name, cells in found.items()}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(rows: Mapping[str, Sequence[str]], headings: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in ("", *headings))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in (name, *cells)) + "</tr>\n"
        for name, cells in rows.items()
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _heading(text: str, content: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>\n{content}"
