"""The same run in this process, without Flower and Ray."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from dccl_flower.codecs import CODECS
from dccl_flower.config import ConfError
from dccl_flower.device import Device
from dccl_flower.device_store import DeviceStore
from dccl_flower.engine import AfterRound
from dccl_flower.experiment import Experiment
from dccl_flower.in_process import InProcess
from dccl_flower.method import Answer, Ask, DeviceHalf, Method, find_method
from dccl_flower.seeds import alone
from dccl_flower.simulations.app.experiment_run import one_line, run_experiment
from dccl_flower.simulations.app.keeper import Keeper
from dccl_flower.simulations.app.run_folder import (
    DEVICES_FOLDER,
    RESULTS_FILE,
    check_resumable,
    claim_folder,
    make_folder,
)
from dccl_flower.simulations.experiment import check_devices, policy_of, roster_of
from dccl_flower.simulations.run.display import Display
from dccl_flower.simulations.run.runner import run_simulation, signals_as_interrupts
from dccl_flower.simulations.superlink import RunError


def run_anywhere(
    experiment: Experiment,
    folder: Path,
    display: Display,
    port: int,
    here: bool = False,
    ray_address: str | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run through Flower, or in this process if devices have no part or ``here`` says so.

    ``ray_address`` is that of a Ray cluster for the devices. Return the content of results.json.
    Raises RunError where the run fails.
    """
    if check_devices(experiment) and not here:
        to_flower = (experiment.conf, folder, port, display)
        run_simulation(*to_flower, ray_address=ray_address, resume=resume)
    else:
        run_here(experiment, folder, display, resume)
    results: dict[str, Any] = json.loads((folder / RESULTS_FILE).read_text())
    return results


def run_here(experiment: Experiment, folder: Path, display: Display, resume: bool = False) -> None:
    """Run an experiment, or go on with it, and leave everything in ``folder``.

    Raises RunError where it fails.
    """
    if experiment.conf.privacy.dp != "none":
        given = f"privacy.dp={experiment.conf.privacy.dp}"
        raise ConfError(f"{given}: it is Flower that does it, so not in this process")
    if resume:
        check_resumable(folder)
    else:
        make_folder(folder)
        claim_folder(folder)

    def rounds(keeper: Keeper) -> dict[str, int]:
        store = Path(experiment.conf.devices.store or folder / DEVICES_FOLDER)
        keeper.bring_store(store)
        engine = engine_here(experiment, keeper.method, store)
        keeper.engine_memory = lambda: {**engine.memory(), "store": str(store)}
        engine.run(experiment.conf.rounds.count, keeper, keeper.standing)
        return dict(engine.traffic.totals)

    with signals_as_interrupts():
        try:
            run_experiment(experiment, folder, rounds, display.show, resume=resume)
        except ConfError:
            raise
        except Exception as error:
            raise RunError(one_line(error)) from error


def rounds_here(experiment: Experiment, method: Method, after_round: AfterRound) -> dict[str, int]:
    """Run all rounds of a method in this process; return the bytes that passed, by kind."""
    with tempfile.TemporaryDirectory(prefix="dccl-devices-") as store:
        engine = engine_here(experiment, method, Path(experiment.conf.devices.store or store))
        engine.run(experiment.conf.rounds.count, after_round)
    return dict(engine.traffic.totals)


def engine_here(experiment: Experiment, method: Method, store: Path) -> InProcess:
    """Return an engine of this process, whose devices keep things in ``store``."""
    conf = experiment.conf
    half = find_method(conf.method.name).device(experiment)
    return InProcess(
        method,
        OnThreads(half, conf.runtime.threads),
        roster_of(conf),
        experiment.device_loader,
        DeviceStore(store),
        CODECS[conf.wire.codec],
        policy_of(conf),
        max(1, conf.runtime.keep_last),
    )


class OnThreads:
    """A device's half that computes with a number of threads of its own, as a worker would."""

    def __init__(self, half: DeviceHalf, threads: int) -> None:
        self.turns = half.turns
        self.state_like = half.state_like
        self.merge = half.merge
        self._half = half
        self._threads = threads

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Take the turn, and leave the number of threads as it was."""
        with alone():  # the number is the whole process's, and the server may be training too
            before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
            try:
                return self._half.turn(ask, device)
            finally:
                torch.set_num_threads(before)
