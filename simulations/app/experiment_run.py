"""One experiment from its data to its results, whichever engine carries the rounds."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dccl_flower.checkpoint import save_models
from dccl_flower.config import ConfError
from dccl_flower.config_loading import dump_conf
from dccl_flower.experiment import Experiment
from dccl_flower.method import Method, find_method
from dccl_flower.simulations.app.events import EventWriter, NoteHandler
from dccl_flower.simulations.app.plots import plot_curves
from dccl_flower.simulations.app.recorder import Recorder
from dccl_flower.simulations.app.results import Results, virtual_seconds
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.experiment import check_devices
from dccl_flower.simulations.reports import versions

# Runs all rounds of a method, calls the recorder after each, and returns the bytes by kind.
Engine = Callable[[Method, Recorder], dict[str, int]]
Tell = Callable[[dict[str, Any]], None]


def run_experiment(
    experiment: Experiment, folder: Path, engine: Engine, tell: Tell | None = None
) -> None:
    """Run an experiment and leave everything in ``folder``; its events tell how it ends."""
    conf, events = experiment.conf, EventWriter(folder, tell)
    events.write("started", name=conf.name, seed=conf.seed)
    notes = NoteHandler(events)
    logging.getLogger("dccl_flower").addHandler(notes)
    try:
        _run(experiment, folder, events, engine)
    except BaseException as error:
        events.write("failed", cause=one_line(error))
        raise
    finally:
        logging.getLogger("dccl_flower").removeHandler(notes)
    events.write("finished")


def _run(experiment: Experiment, folder: Path, events: EventWriter, engine: Engine) -> None:
    conf = experiment.conf
    torch.set_num_threads(conf.runtime.server_threads)
    (folder / CONF_FILE).write_text(dump_conf(conf))
    started = time.monotonic()
    check_devices(experiment)  # before what takes long
    phases = PhaseClock(events)
    method = find_method(conf.method.name).server(experiment, phases.progress)
    recorder = Recorder(folder, events, method, conf.rounds.count)
    method.prepare()
    rounds_started = time.monotonic()
    with contextlib.closing(recorder):
        wire = engine(method, recorder)
    ended = time.monotonic()
    results = Results(
        conf=asdict(conf),
        seed=conf.seed,
        versions=versions(),
        final=dict(recorder.rounds[-1].scores),
        references=dict(method.references()),
        rounds=recorder.rounds,
        wire=wire,
        seconds={
            **phases.seconds,
            "rounds": ended - rounds_started,
            "total": ended - started,
            **virtual_seconds(recorder.rounds),
        },
        peak_rss_mb=recorder.peaks(),
    )
    save_models(folder / "models", method.state_dict(recorder.final_state))
    plot_curves(results, folder / "curves.png")
    results.write(folder / "results.json")


def one_line(error: BaseException) -> str:
    """Return an error as one line; its type only where it is not one of ours."""
    text = " ".join(str(error).split()) or "no message"
    is_ours = isinstance(error, ConfError) or type(error).__module__.startswith("dccl_flower")
    return text if is_ours else f"{type(error).__name__}: {text}"


class PhaseClock:
    """Turn a method's progress into events, and time each phase."""

    def __init__(self, events: EventWriter) -> None:
        self.seconds: dict[str, float] = {}
        self._events = events
        self._last = time.monotonic()

    def progress(self, phase: str, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` epochs of a phase are over."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
        self._events.write("phase", phase=phase, done=done, total=total)
