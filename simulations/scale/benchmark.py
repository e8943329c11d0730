"""``dccl scale``: what a device's turn costs here, in stock Flower, in pfl and in a bare loop."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dccl_flower.config import Conf
from dccl_flower.config_loading import dump_conf
from dccl_flower.files import write_aside, write_json
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.jobs import JobRunner, Outcome, make_job, raise_failures
from dccl_flower.simulations.reports import versions
from dccl_flower.simulations.run.runner import OURS, App, run_simulation, signals_as_interrupts
from dccl_flower.simulations.scale.cases import (
    BARE,
    DCCL,
    FLOWER,
    PFL,
    Case,
    Settings,
    case_conf,
    cases,
)
from dccl_flower.simulations.scale.display import ScaleDisplay
from dccl_flower.simulations.scale.flower import FIRST_TURN
from dccl_flower.simulations.scale.pfl import is_installed
from dccl_flower.simulations.scale.plots import plot_scale
from dccl_flower.simulations.scale.process_meter import DRIVER, RAY, WORKER, ProcessMeter
from dccl_flower.simulations.scale.report import Row, markdown, ratios
from dccl_flower.simulations.scale.workload import RoundCost, per_turn
from dccl_flower.simulations.superlink import RunError, choose_port

HERE = "dccl_flower.simulations"
STOCK = App(f"{HERE}.scale.flower:server_app", f"{HERE}.scale.flower:client_app", tuned=False)
APPS = {FLOWER: STOCK, DCCL: OURS}
PREPARE = f"{HERE}.scale.loops:prepare_cloud"
LOOPS = {BARE: f"{HERE}.scale.loops:measure", PFL: f"{HERE}.scale.pfl:measure"}


def run_scale(
    conf_name: str, overrides: Sequence[str], settings: Settings, folder: Path, port: int | None
) -> str:
    """Take every measurement and return the report, which the folder holds too.

    ``scale.json`` and ``scale.md`` are written after each measurement, ``scale.png`` at the end.
    Raises ConfError before anything is started, and RunError afterwards where a measurement failed.
    """
    choose_port(port)
    todo = {case: case_conf(case, conf_name, overrides, settings) for case in cases(settings)}
    for conf in todo.values():
        open_experiment(conf)
    report = Report(folder, shlex.join(_command(conf_name, overrides, settings)))
    with signals_as_interrupts(), ScaleDisplay(len(todo)) as display:
        try:
            for case, conf in todo.items():
                display.begin(case.title)
                rows = Measurement(case, conf, folder / "runs" / case.name, port, display).rows()
                report.add(rows)
                for row in rows:
                    display.end(row)
        finally:  # half a benchmark is worth looking at too
            report.draw()
    report.raise_failures()
    return report.text()


class Report:
    """The rows so far, and the files that show them."""

    def __init__(self, folder: Path, command: str) -> None:
        self._folder = folder
        self._command = command
        self._rows: list[Row] = []

    def add(self, rows: Sequence[Row]) -> None:
        """Take up rows and write everything but the plot."""
        self._rows += rows
        facts = {"command": self._command, "cores": os.cpu_count(), "versions": versions()}
        content = {**facts, "ratios": ratios(self._rows), "rows": self._rows}
        write_json(self._folder / "scale.json", content)
        write_aside(self._folder / "scale.md", self.text())

    def draw(self) -> None:
        """Draw the plot, where there is something to draw."""
        if any(row.get("later") for row in self._rows):
            plot_scale(self._rows, self._folder / "scale.png")

    def text(self) -> str:
        """Return the report as Markdown."""
        return markdown(self._rows, self._command)

    def raise_failures(self) -> None:
        """Raise RunError where measurements failed."""
        raise_failures([f"{r['title']}: {r['error']}" for r in self._rows if "error" in r])


class Measurement:
    """One case, from its start to its rows."""

    def __init__(
        self, case: Case, conf: Conf, folder: Path, port: int | None, display: ScaleDisplay
    ) -> None:
        self._case = case
        self._conf = conf
        self._folder = folder
        self._port = port
        self._display = display
        self._launched = 0.0

    def rows(self) -> list[Row]:
        """Run the case. A failure makes a row that tells the cause."""
        if self._case.system == PFL and not is_installed():
            note = "not installed: pip install -r requirements-bench.txt"
            return [self._row("none", {"note": note})]
        shutil.rmtree(self._folder, ignore_errors=True)
        self._launched = time.time()
        try:
            if self._case.system == BARE:  # which comes first: nobody's first turn waits for this
                self._run_job(PREPARE)
            if self._case.system in LOOPS:
                return self._in_a_process()
            return [self._through_flower()]
        except RunError as error:
            return [self._row(self._case.control, {"error": str(error)})]

    def _in_a_process(self) -> list[Row]:
        outcome = self._run_job(LOOPS[self._case.system], threads=1)
        self._launched = time.time() - outcome.seconds
        result = outcome.result or {}
        memory = {"worker_mb": result["rss_mb"]}
        return [
            self._costs(
                control, [RoundCost(**c) for c in costs], memory, float(result["first_turn_at"])
            )
            for control, costs in result["rounds"].items()
        ]

    def _run_job(self, function: str, **facts: int) -> Outcome:
        folder = self._folder / function.rpartition(":")[-1]
        text = dump_conf(self._conf)
        job = make_job(self._case.title, folder, str(time.time()), text, function, **facts)
        with JobRunner(1, lambda outcome: None) as runner:
            (outcome,) = runner.run([job])
        if outcome.result is None:
            raise RunError(outcome.failure)
        return outcome

    def _through_flower(self) -> Row:
        case, conf = self._case, self._conf
        with tempfile.TemporaryDirectory(prefix="dccl-store-") as store:
            conf.devices.store = store
            with ExitStack() as stack:
                listener = Listener(stack)
                port, app = choose_port(self._port), APPS[case.system]
                run_simulation(conf, self._folder, port, self._display, app, listener)
            first_turn = _oldest(Path(store) if app is OURS else self._folder / FIRST_TURN)
        meter = listener.meter
        memory = {
            "driver_mb": meter.peak_mb(DRIVER),
            "worker_mb": meter.largest_mb(WORKER),
            "ray_mb": meter.peak_mb(RAY),
        }
        return self._costs(case.control, round_costs(listener.rounds, meter), memory, first_turn)

    def _costs(
        self,
        control: str,
        costs: Sequence[RoundCost],
        memory: Mapping[str, float | None],
        first_turn: float | None,
    ) -> Row:
        later = per_turn(costs[1:])
        waited = None if first_turn is None else first_turn - self._launched
        measured = {
            "first": per_turn(costs[:1]),
            "later": later,
            "turns_per_s": None if later is None else 1 / later["wall_s"],
            "mimic_share": self._mimic_share(control, later),
            **memory,
            "seconds_to_first_turn": waited,
            "rounds": [asdict(cost) for cost in costs],
        }
        return self._row(control, measured)

    def _mimic_share(self, control: str, later: Mapping[str, Any] | None) -> float | None:
        """Return in which share of the later turns the mimic computes logits."""
        if later is None or control != "mimic":
            return None if later is None else 0.0
        is_cached = self._conf.runtime.cache_logits and self._conf.data.augment == "none"
        return float(later["new_share"]) if self._case.system == DCCL and is_cached else 1.0

    def _row(self, control: str, measured: Mapping[str, Any]) -> Row:
        case = replace(self._case, control=control)
        return {**asdict(case), "title": case.title, **measured}


class Listener:
    """Hear a run's events, and meter its processes from the first of them on."""

    def __init__(self, stack: ExitStack) -> None:
        self.rounds: list[dict[str, Any]] = []
        self._stack = stack
        self._meter: ProcessMeter | None = None

    def __call__(self, event: Mapping[str, Any], pid: int) -> None:
        """Take note of an event of the run below the process ``pid``."""
        if self._meter is None:
            self._meter = self._stack.enter_context(ProcessMeter(pid))
        if event["event"] == "round":
            self.rounds.append(dict(event))

    @property
    def meter(self) -> ProcessMeter:
        """The meter; there is one once an event has come."""
        assert self._meter is not None
        return self._meter


def round_costs(events: Sequence[Mapping[str, Any]], meter: ProcessMeter) -> list[RoundCost]:
    """Return what each round took, from the end of the one before; of the first, from its start."""
    costs: list[RoundCost] = []
    seen: set[int] = set()
    for place, event in enumerate(events):
        began = events[place - 1]["time"] if place else event["time"] - event["seconds"]
        devices = event.get("devices", [])
        turns = event.get("turns", len(devices))
        new = len(set(devices) - seen)
        seen.update(devices)
        cpu = meter.cpu_at(event["time"]) - meter.cpu_at(began)
        sent = event["bytes_down"] + event["bytes_up"]
        costs.append(RoundCost(cpu, event["time"] - began, turns, new, sent))
    return costs


def _oldest(path: Path) -> float | None:
    """Return when the first file at or below a path was written: by the first device's turn."""
    files = [path] if path.is_file() else path.rglob("*")
    return min((each.stat().st_mtime for each in files if each.is_file()), default=None)


def _command(conf_name: str, overrides: Sequence[str], settings: Settings) -> list[str]:
    words = ["dccl", "scale", *overrides]
    words += [] if conf_name == "scale" else ["--conf", conf_name]
    words += ["--devices", ",".join(map(str, settings.devices))]
    words += ["--workers", ",".join(map(str, settings.workers))]
    words += [] if settings.cohort is None else ["--cohort", str(settings.cohort)]
    words += ["--rounds", str(settings.rounds), "--steps", str(settings.steps)]
    return words + (["--skip", ",".join(sorted(settings.skip))] if settings.skip else [])
