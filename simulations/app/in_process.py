"""The same run in this process, without Flower and Ray."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from dccl_flower.codecs import CODECS
from dccl_flower.config import ConfError
from dccl_flower.device import Device
from dccl_flower.device_store import DeviceStore
from dccl_flower.experiment import Experiment
from dccl_flower.in_process import InProcess
from dccl_flower.method import Answer, Ask, DeviceHalf, Method, find_method
from dccl_flower.seeds import alone
from dccl_flower.simulations.app.experiment_run import one_line, run_experiment
from dccl_flower.simulations.app.recorder import Recorder
from dccl_flower.simulations.app.run_folder import claim_folder, make_folder
from dccl_flower.simulations.experiment import policy_of, roster_of
from dccl_flower.simulations.run.display import Display
from dccl_flower.simulations.run.runner import signals_as_interrupts
from dccl_flower.simulations.superlink import RunError


def run_here(experiment: Experiment, folder: Path, display: Display) -> None:
    """Run an experiment and leave everything in ``folder``. Raises RunError where it fails."""
    conf = experiment.conf
    make_folder(folder)
    claim_folder(folder)

    def rounds_here(method: Method, recorder: Recorder) -> dict[str, int]:
        with tempfile.TemporaryDirectory(prefix="dccl-devices-") as store:
            engine = engine_of(experiment, method, store)
            engine.run(conf.rounds.count, recorder)
        return dict(engine.sent)

    with signals_as_interrupts():
        try:
            run_experiment(experiment, folder, rounds_here, display.show)
        except ConfError:
            raise
        except Exception as error:
            raise RunError(one_line(error)) from error


def engine_of(experiment: Experiment, method: Method, store: str) -> InProcess:
    """Return the devices of an experiment behind a method, all in this process."""
    conf = experiment.conf
    half = find_method(conf.method.name).device(experiment)
    return InProcess(
        method,
        OnThreads(half, conf.runtime.threads),
        roster_of(conf),
        experiment.device_loader,
        DeviceStore(conf.devices.store or store),
        CODECS[conf.wire.codec],
        policy_of(conf),
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
