"""The server's side of ``flwr run``: prepare the cloud, run the rounds, write the results."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dccl_flower.checkpoint import save_models
from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import dump_conf
from dccl_flower.fleet.cohorts import Rules
from dccl_flower.fleet.profiles import load_fleet
from dccl_flower.flower.nodes import check_node_count
from dccl_flower.learning.fusion import FUSIONS, NEED_CLASS_COUNTS
from dccl_flower.models.frozen import load_exchanged
from dccl_flower.simulations.app.events import EventWriter, NoteHandler
from dccl_flower.simulations.app.plots import plot_curves
from dccl_flower.simulations.app.recorder import Recorder
from dccl_flower.simulations.app.results import Results, final_scores, virtual_seconds
from dccl_flower.simulations.app.run_folder import CONF_FILE, claim_folder, default_folder
from dccl_flower.simulations.experiment import (
    Experiment,
    cached_experiment,
    check_devices,
    device_store,
)
from dccl_flower.simulations.prepared import prepare
from dccl_flower.simulations.reports import versions
from dccl_flower.strategies import DcCcl
from dccl_flower.strategies.dc_ccl.cloud import Cloud

app = ServerApp()
LATE_STATISTICS = {"batch_frozen": "frozen", "batch_fused": "fused", "batch_mixed": "mixed"}
POOLED = ("batch_fused", "batch_mixed")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment; a failure is written to the events file before it is raised."""
    run_config = context.run_config
    experiment = cached_experiment(str(run_config["conf"]), str(run_config["overrides"]))
    conf = experiment.conf
    folder = Path(str(run_config["output"]) or default_folder(conf)).expanduser().resolve()
    claim_folder(folder)
    events = EventWriter(folder)
    events.write("started", name=conf.name, seed=conf.seed)
    print(f"run directory: {folder}", flush=True)
    store = device_store(conf, context.run_id)
    notes = NoteHandler(events)
    logging.getLogger("dccl_flower").addHandler(notes)
    try:
        run(experiment, grid, folder, events)
    except BaseException as error:
        events.write("failed", cause=one_line(error))
        raise
    finally:
        logging.getLogger("dccl_flower").removeHandler(notes)
        if conf.devices.store is None:
            shutil.rmtree(store, ignore_errors=True)
    events.write("finished")


def run(experiment: Experiment, grid: Grid, folder: Path, events: EventWriter) -> None:
    """Pretrain, distil, run the rounds under Flower, and write everything to ``folder``."""
    conf, plan = experiment.conf, experiment.plan
    torch.set_num_threads(conf.runtime.server_threads)
    (folder / CONF_FILE).write_text(dump_conf(conf))
    started = time.monotonic()
    check_node_count(len(list(grid.get_node_ids())), conf.devices.count)
    if conf.devices.profiles is not None:  # before what takes long
        check_devices(experiment)
    phases = PhaseClock(events)
    cloud = experiment.cloud(phases.progress)
    prepare(experiment, cloud, lambda text: events.write("note", text=text))
    scorer = cloud.scorer(experiment.test_loader(), plan.cloud_classes, plan.device_classes)
    strategy = make_strategy(conf, cloud)
    recorder = Recorder(folder, events, strategy, scorer, conf.rounds.count)
    rounds_started = time.monotonic()
    with contextlib.closing(recorder):
        strategy.start(
            grid,
            strategy.initial_arrays(),
            num_rounds=conf.rounds.count,
            timeout=conf.rounds.timeout,
            evaluate_fn=recorder,
        )
    ended = time.monotonic()
    results = Results(
        conf=asdict(conf),
        seed=conf.seed,
        versions=versions(),
        final=final_scores(recorder.rounds[-1]),
        cloud_submodel=scorer.cloud_submodel(),
        mimic=scorer.mimic(),
        mimic_fidelity=scorer.mimic_fidelity(),
        rounds=recorder.rounds,
        wire=dict(strategy.ledger.totals),
        seconds={
            **phases.seconds,
            "rounds": ended - rounds_started,
            "total": ended - started,
            **virtual_seconds(recorder.rounds),
        },
        peak_rss_mb=recorder.peaks(),
    )
    load_exchanged(cloud.co_submodel, recorder.final_state)
    save_models(folder / "models", cloud.state_dict())
    plot_curves(results, folder / "curves.png")
    results.write(folder / "results.json")


def make_strategy(conf: Conf, cloud: Cloud) -> DcCcl:
    """Return the strategy that a configuration describes."""
    fusion = f"{conf.fusion}_pooled" if conf.normalisation in POOLED else conf.fusion
    devices = conf.devices
    return DcCcl(
        cloud,
        num_devices=devices.count,
        devices_per_round=devices.per_round,
        fleet=load_fleet(devices.profiles, devices.count, conf.seed) if devices.profiles else None,
        rules=Rules(devices.over_sampling, devices.deadline),
        rounds=conf.rounds,
        loss=conf.loss,
        fusion=FUSIONS[fusion],
        class_counts=fusion in NEED_CLASS_COUNTS,
        statistics=LATE_STATISTICS.get(conf.normalisation, "batch"),
        head_tuning=conf.head_tuning == "federated",
        exemplars=conf.exemplars,
        exemplar_choice=conf.exemplar_choice,
        codec=conf.wire.codec,
        devices_per_node=conf.runtime.devices_per_node,
        seed=conf.seed,
    )


def one_line(error: BaseException) -> str:
    """Return an error as one line; its type only where it is not one of ours."""
    text = " ".join(str(error).split()) or "no message"
    is_ours = isinstance(error, ConfError) or type(error).__module__.startswith("dccl_flower")
    return text if is_ours else f"{type(error).__name__}: {text}"


class PhaseClock:
    """Turn the cloud's progress into events, and time each phase."""

    def __init__(self, events: EventWriter) -> None:
        self.seconds = {"pretrain": 0.0, "distil": 0.0}
        self._events = events
        self._last = time.monotonic()

    def progress(self, phase: str, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` epochs of a phase are over."""
        now = time.monotonic()
        self.seconds[phase] += now - self._last
        self._last = now
        self._events.write("phase", phase=phase, done=done, total=total)
