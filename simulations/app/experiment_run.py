"""One experiment from its data to its results, whichever engine carries the rounds."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

import torch

from dccl_flower.checkpoint import save_models
from dccl_flower.config import ConfError
from dccl_flower.config_loading import dump_conf
from dccl_flower.engine import peak_rss_mb
from dccl_flower.experiment import Experiment
from dccl_flower.files import write_json
from dccl_flower.flower.errand import WorkerLost
from dccl_flower.flower.privacy import epsilon_of, noise_of_rounds
from dccl_flower.method import ScoresByDevice
from dccl_flower.simulations.app.events import EventWriter, Tell
from dccl_flower.simulations.app.keeper import Keeper, last_standing
from dccl_flower.simulations.app.plots import plot_curves
from dccl_flower.simulations.app.recorder import Recorder
from dccl_flower.simulations.app.run_folder import (
    CONF_FILE,
    DEVICES_FOLDER,
    RESULTS_FILE,
    RUN_LOCK,
    locked,
)
from dccl_flower.simulations.experiment import check_devices
from dccl_flower.simulations.reports import versions
from dccl_flower.standing import FOLDER as CHECKPOINTS_FOLDER
from dccl_flower.standing import Checkpoints

# Runs the rounds that are left of a keeper's method, calls it after each, returns bytes by kind.
Engine = Callable[[Keeper], dict[str, int]]


def run_experiment(
    experiment: Experiment, folder: Path, engine: Engine, *listeners: Tell, resume: bool = False
) -> None:
    """Run an experiment and leave everything in ``folder``; its events tell how it ends.

    With ``resume`` it goes on from the last checkpoint there, and where there is none begins anew.
    Raises ConfError where another process runs in that folder.
    """
    with locked(folder / RUN_LOCK):
        conf, events = experiment.conf, EventWriter(folder, *listeners)
        events.write("started", name=conf.name, seed=conf.seed)
        logging.getLogger("dccl_flower").addHandler(events)
        try:
            _run(experiment, folder, events, engine, resume)
        except BaseException as error:
            with suppress(OSError):  # of a full disk, which is the cause: raise that
                events.write("failed", cause=one_line(error), again=isinstance(error, WorkerLost))
            raise
        finally:
            logging.getLogger("dccl_flower").removeHandler(events)
        for name in (CHECKPOINTS_FOLDER, DEVICES_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
        events.write("finished")


def _run(
    experiment: Experiment, folder: Path, events: EventWriter, engine: Engine, resume: bool
) -> None:
    conf = experiment.conf
    torch.set_num_threads(conf.runtime.server_threads)
    (folder / CONF_FILE).write_text(dump_conf(conf))
    check_devices(experiment)  # before what takes long
    checkpoints = Checkpoints(folder, conf.runtime.keep_last)
    standing = last_standing(checkpoints) if resume else None
    recorder = Recorder(experiment, folder, events, standing.number if standing else 0)
    with recorder.boards:
        keeper = Keeper(checkpoints, standing, recorder)
        keeper.prepare()
        events.write("prepared", **recorder.so_far())
        wire = engine(keeper)
    seconds = {**recorder.seconds, **keeper.seconds()}
    clocked = [row["virtual_seconds"] for row in recorder.rounds]
    if None not in clocked:
        seconds["virtual"] = sum(clocked)
    results = {
        "conf": asdict(conf),
        "seed": conf.seed,
        "data": experiment.facts(),
        "versions": versions(),
        "final": recorder.final,
        "references": dict(recorder.method.references()),
        "rounds": recorder.rounds,
        "faults": dict(sum((Counter(row["faults"]) for row in recorder.rounds), Counter())),
        "wire": wire,
        "seconds": seconds,
        "peak_rss_mb": {"server": peak_rss_mb(), "worker": recorder.worker_peak_mb},
    }
    if conf.privacy.dp != "none":
        results["privacy"] = privacy_spent(experiment, [row["devices"] for row in recorder.rounds])
    if isinstance(recorder.method, ScoresByDevice):
        results["devices"] = device_table(recorder.method)
    save_models(folder / "models", recorder.method.state_dict(recorder.final_state))
    plot_curves(results, folder / "curves.png")
    write_json(folder / RESULTS_FILE, results)


def privacy_spent(experiment: Experiment, answered: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return epsilon after all rounds, which is None without noise, and what it rests on."""
    conf, own = experiment.conf, experiment.conf.privacy
    share = 1 - getattr(conf.rounds, "cloud_weight", 0.0)
    counts = [len(devices) for devices in answered]
    noises = noise_of_rounds(own, experiment.cohort_size, counts, share)
    if own.dp == "local":  # each device spends its own, those that answered most often most
        most = max(Counter(device for devices in answered for device in devices).values())
        noises = noises[:most]
    epsilon = epsilon_of(noises, own.delta)
    return {"epsilon": epsilon, "delta": own.delta, "noise_of_rounds": noises}


def device_table(method: ScoresByDevice) -> dict[str, Any]:
    """Return what the last round's devices scored, as rows (device, value, weight, group).

    A value is None where there is none.
    """
    rows = [
        [device, None if isnan(score.value) else score.value, score.weight, score.group]
        for device, score in sorted(method.by_device().items())
    ]
    return {"grouped_by": method.grouped_by, "rows": rows}


def one_line(error: BaseException) -> str:
    """Return an error as one line; its type only where it is not one of ours."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or "no message"
    is_ours = isinstance(error, ConfError) or type(error).__module__.startswith("dccl_flower")
    return text if is_ours else f"{type(error).__name__}: {text}"
