"""From a configuration to the objects that a run works with."""

from __future__ import annotations

import os
import shlex
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from dccl_flower.codecs import CODECS
from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.experiment import Experiment
from dccl_flower.fleet.judge import FaultPolicy
from dccl_flower.fleet.profiles import fleet_of
from dccl_flower.fleet.roster import Roster, Rules
from dccl_flower.fleet.tiers import fitting_tiers, turn_costs
from dccl_flower.flower.privacy import uncovered
from dccl_flower.method import Kinds, find_method


def open_experiment(conf: Conf) -> Experiment:
    """Return a configuration with its data. Raises ConfError where these are impossible."""
    if conf.runtime.gpu and not torch.cuda.is_available():
        raise ConfError("runtime.gpu=true: torch sees no GPU here")
    experiment: Experiment = find_method(conf.method.name).open(conf)
    return experiment


def check_devices(experiment: Experiment) -> bool:
    """Tell whether devices have a part in the method at all.

    Raises ConfError where they cannot build their models, no tier can train them, or differential
    privacy does not cover what they send.
    """
    conf = experiment.conf
    if conf.privacy.dp != "none":
        check_privacy(experiment)
    workload = find_method(conf.method.name).check(experiment)
    if (fleet := fleet_of(conf)) is not None and workload is not None:
        fitting_tiers(fleet, turn_costs(fleet, workload, CODECS[conf.wire.codec]))
    return workload is not None


def check_privacy(experiment: Experiment) -> None:
    """Raise ConfError where a run would send what differential privacy does not cover."""
    conf, own = experiment.conf, experiment.conf.privacy
    given = f"privacy.dp={own.dp}"
    if find_spec("dp_accounting") is None:
        raise ConfError(f"{given}: needs dp-accounting: pip install 'dccl-flower[privacy]'")
    declared = find_method(conf.method.name).kinds
    kinds = Kinds(set(), set()) if declared is None else declared(experiment)
    more = sorted({*kinds.told, *(kinds.up if len(kinds.up) != 1 else ())})
    sent = (CODECS[conf.wire.codec], conf.runtime.devices_per_node, fleet_of(conf))
    more += uncovered(*sent, conf.rounds.on_failure)
    if more or not kinds.up:
        what = ", ".join(more) or f"method.name={conf.method.name}, whose devices train nothing"
        raise ConfError(f"{given}: does not cover {what}")
    most = experiment.cohort_size / 10
    if own.dp.endswith("adaptive") and own.noise_multiplier >= most:
        told = f"must be below {most:g}, a tenth of the devices of a round, with {given}"
        raise ConfError(f"privacy.noise_multiplier={own.noise_multiplier}: {told}")


def roster_of(conf: Conf) -> Roster:
    """Return who is asked in each round."""
    devices = conf.devices
    rules = Rules(devices.over_sampling, devices.deadline)
    return Roster(devices.count, devices.per_round, conf.seed, fleet_of(conf), rules)


def policy_of(conf: Conf) -> FaultPolicy:
    """Return what is done about devices that do not answer."""
    return FaultPolicy.of(conf.rounds)


@cache
def cached_experiment(name_or_path: str, overrides: str) -> Experiment:
    """Return the experiment of a run, built once a process."""
    return open_experiment(load_conf(name_or_path, shlex.split(overrides)))


def device_store(conf: Conf, run_id: int, given: str = "") -> Path:
    """Return the folder where this run's devices keep what they received.

    ``given`` is that of a command which runs server and devices on one machine.
    """
    if conf.devices.store is not None or given:
        return Path(conf.devices.store or given).expanduser().resolve()
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    return home / "dccl-devices" / str(run_id)
