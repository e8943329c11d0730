"""``dccl scale``: what a device's turn costs here, in stock Flower, in pfl and in a bare loop."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dccl_flower.config import Conf
from dccl_flower.config_loading import dump_conf
from dccl_flower.files import write_aside, write_json
from dccl_flower.image_config import with_submodels
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
from dccl_flower.simulations.scale.pfl import is_installed
from dccl_flower.simulations.scale.plots import plot_scale
from dccl_flower.simulations.scale.process_meter import DRIVER, RAY, WORKER, ProcessMeter
from dccl_flower.simulations.scale.report import Row, markdown, ratios
from dccl_flower.simulations.scale.workload import RoundCost, per_turn
from dccl_flower.simulations.superlink import RunError, choose_port

HERE = "dccl_flower.simulations.scale"
STOCK = App(f"{HERE}.flower:server_app", f"{HERE}.flower:client_app", tuned=False)
APPS = {FLOWER: STOCK, DCCL: OURS}
PREPARE = f"{HERE}.loops:prepare_cloud"
LOOPS = {BARE: f"{HERE}.loops:measure", PFL: f"{HERE}.pfl:measure"}


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
    command = _command(conf_name, overrides, settings)
    rows: list[Row] = []
    with signals_as_interrupts(), ScaleDisplay(len(todo)) as display:
        try:
            for case, conf in todo.items():
                display.begin(case.title)
                found = Measurement(case, conf, folder / "runs" / case.name, port, display).rows()
                rows += found
                _write_report(rows, command, folder)
                for row in found:
                    display.end(row)
        finally:  # half a benchmark is worth looking at too
            plot_scale(rows, folder / "scale.png")
    raise_failures([f"{row['title']}: {row['error']}" for row in rows if "error" in row])
    return markdown(rows, command)


@dataclass
class Measurement:
    """One case, from its start to its rows."""

    case: Case
    conf: Conf
    folder: Path
    port: int | None
    display: ScaleDisplay

    def rows(self) -> list[Row]:
        """Run the case. A failure makes a row that tells the cause."""
        system = self.case.system
        if system == PFL and not is_installed():
            return [_row(self.case, note="not installed: pip install -r requirements-bench.txt")]
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            if system == BARE:  # which comes first: nobody's first turn waits for this
                self._run_job(PREPARE)
            return self._in_a_process() if system in LOOPS else [self._through_flower(APPS[system])]
        except RunError as error:
            return [_row(self.case, error=str(error))]

    def _in_a_process(self) -> list[Row]:
        outcome = self._run_job(LOOPS[self.case.system], threads=1)
        launched, result = time.time() - outcome.seconds, outcome.result or {}
        rows = []
        for control, costs in result["rounds"].items():
            rounds = [RoundCost(**cost) for cost in costs]
            waited = result["first_turn_at"] - launched
            rows.append(self._costs(control, rounds, waited, worker_mb=result["rss_mb"]))
        return rows

    def _run_job(self, function: str, **facts: int) -> Outcome:
        folder = self.folder / function.rpartition(":")[-1]
        key, text = str(time.time()), dump_conf(self.conf)
        job = make_job(self.case.title, folder, key, text, function, **facts)
        with JobRunner(1, lambda outcome: None) as runner:
            (outcome,) = runner.run([job])
        if outcome.result is None:
            raise RunError(outcome.failure)
        return outcome

    def _through_flower(self, app: App) -> Row:
        launched = time.time()
        rounds: list[dict[str, Any]] = []
        meters: list[ProcessMeter] = []
        with tempfile.TemporaryDirectory(prefix="dccl-store-") as store, ExitStack() as stack:

            def hear(event: dict[str, Any], pid: int) -> None:
                if not meters:  # from the first event on
                    meters.append(stack.enter_context(ProcessMeter(pid)))
                if event["event"] == "round":
                    rounds.append(event)

            self.conf.devices.store = store
            port = choose_port(self.port)
            run_simulation(self.conf, self.folder, port, self.display, app, hear)
            # What a device stores first, it stores in the first turn.
            files = (path.stat() for path in Path(store).rglob("*") if path.is_file())
            first_turn = min((each.st_mtime for each in files), default=None)
        (meter,) = meters
        return self._costs(
            self.case.control,
            round_costs(rounds, meter),
            None if first_turn is None else first_turn - launched,
            driver_mb=meter.peak_mb(DRIVER),
            worker_mb=meter.largest_mb(WORKER),
            ray_mb=meter.peak_mb(RAY),
        )

    def _costs(
        self, control: str, costs: Sequence[RoundCost], waited: float | None, **mb: float | None
    ) -> Row:
        later = per_turn(costs[1:])
        share = None if later is None else self._mimic_share(control, later["new_share"])
        return _row(
            replace(self.case, control=control),
            first=per_turn(costs[:1]),
            later=later,
            turns_per_s=None if later is None else 1 / later["wall_s"],
            mimic_share=share,
            **mb,
            seconds_to_first_turn=waited,
            rounds=[asdict(cost) for cost in costs],
        )

    def _mimic_share(self, control: str, new_share: float) -> float:
        """Return in which share of the later turns the mimic computes logits."""
        if control != "mimic":
            return 0.0
        is_cached = (
            self.conf.runtime.cache_logits and with_submodels(self.conf).data.augment == "none"
        )
        return new_share if self.case.system == DCCL and is_cached else 1.0


def _row(case: Case, **measured: Any) -> Row:
    return {**asdict(case), "title": case.title, **measured}


def round_costs(events: Sequence[Mapping[str, Any]], meter: ProcessMeter) -> list[RoundCost]:
    """Return what each round took, from the end of the one before; of the first, from its start."""
    costs: list[RoundCost] = []
    seen: set[int] = set()
    for place, event in enumerate(events):
        ended = event["time"]
        began = events[place - 1]["time"] if place else ended - event["seconds"]
        devices = event.get("devices", [])
        new = len(set(devices) - seen)
        seen.update(devices)
        cpu = meter.cpu_at(ended) - meter.cpu_at(began)
        sent = event["bytes_down"] + event["bytes_up"]
        turns = event.get("turns", len(devices))
        costs.append(RoundCost(cpu, ended - began, turns, new, sent))
    return costs


def _write_report(rows: Sequence[Row], command: str, folder: Path) -> None:
    facts = {"command": command, "cores": os.cpu_count(), "versions": versions()}
    write_json(folder / "scale.json", {**facts, "ratios": ratios(rows), "rows": rows})
    write_aside(folder / "scale.md", markdown(rows, command))


def _command(conf_name: str, overrides: Sequence[str], settings: Settings) -> str:
    words = ["dccl", "scale", *overrides]
    words += [] if conf_name == "scale" else ["--conf", conf_name]
    words += ["--devices", ",".join(map(str, settings.devices))]
    words += ["--workers", ",".join(map(str, settings.workers))]
    words += [] if settings.cohort is None else ["--cohort", str(settings.cohort)]
    words += ["--rounds", str(settings.rounds), "--steps", str(settings.steps)]
    words += ["--skip", ",".join(sorted(settings.skip))] if settings.skip else []
    return shlex.join(words)
