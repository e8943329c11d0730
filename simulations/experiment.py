"""From a configuration to the objects that a run works with."""

from __future__ import annotations

import os
import shlex
from functools import cache
from pathlib import Path

import torch

from dccl_flower.codecs import CODECS
from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.experiment import Experiment
from dccl_flower.fleet.profiles import fleet_of
from dccl_flower.fleet.roster import FaultPolicy, Roster, Rules
from dccl_flower.fleet.tiers import fitting_tiers, turn_costs
from dccl_flower.method import find_method


def open_experiment(conf: Conf) -> Experiment:
    """Return a configuration with its data. Raises ConfError where these are impossible."""
    if conf.runtime.gpu and not torch.cuda.is_available():
        raise ConfError("runtime.gpu=true: torch sees no GPU here")
    experiment: Experiment = find_method(conf.method.name).open(conf)
    return experiment


def check_devices(experiment: Experiment) -> bool:
    """Tell whether devices have a part in the method at all.

    Raises ConfError where they cannot build their models, or no tier can train them.
    """
    conf = experiment.conf
    workload = find_method(conf.method.name).check(experiment)
    if (fleet := fleet_of(conf)) is not None and workload is not None:
        fitting_tiers(fleet, turn_costs(fleet, workload, CODECS[conf.wire.codec]))
    return workload is not None


def roster_of(conf: Conf) -> Roster:
    """Return who is asked in each round."""
    devices = conf.devices
    rules = Rules(devices.over_sampling, devices.deadline)
    return Roster(devices.count, devices.per_round, conf.seed, fleet_of(conf), rules)


def policy_of(conf: Conf) -> FaultPolicy:
    """Return what is done about devices that do not answer."""
    return FaultPolicy(conf.rounds.min_replies, conf.rounds.timeout)


@cache
def cached_experiment(name_or_path: str, overrides: str) -> Experiment:
    """Return the experiment of a run, built once a process."""
    return open_experiment(load_conf(name_or_path, shlex.split(overrides)))


def device_store(conf: Conf, run_id: int) -> Path:
    """Return the folder where this run's devices keep what they received."""
    if conf.devices.store is not None:
        return Path(conf.devices.store).expanduser().resolve()
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    return home / "dccl-devices" / str(run_id)
