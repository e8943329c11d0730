"""The devices' side of ``flwr run``."""

from __future__ import annotations

from functools import cache

import torch
from flwr.app import Context

from dccl_flower.flower.device_app import DeviceClient
from dccl_flower.flower.numpy_client_app import numpy_client_app
from dccl_flower.flower.privacy import Mod, private_mods
from dccl_flower.method import DeviceHalf, find_method
from dccl_flower.simulations.app.run_folder import run_arguments
from dccl_flower.simulations.experiment import cached_experiment, device_store


def client_fn(context: Context) -> DeviceClient:
    """Return the client for one message; data and modules stay in the worker process.

    Not so with ``runtime.resident=false``, where each message meets them anew, as in a deployment.
    """
    run = run_arguments(context.run_config)
    experiment = cached_experiment(*run)
    torch.set_num_threads(experiment.conf.runtime.threads)
    half = _half(*run)
    given = str(context.run_config.get("store", ""))
    store = device_store(experiment.conf, context.run_id, given)
    if not experiment.conf.runtime.resident:
        cached_experiment.cache_clear()
        _half.cache_clear()
    return DeviceClient(half, experiment.device_loader, store)


@cache
def _half(name_or_path: str, overrides: str) -> DeviceHalf:
    """Build what all devices of this process train in, one after the other."""
    experiment = cached_experiment(name_or_path, overrides)
    return find_method(experiment.conf.method.name).device(experiment)


def mods_of(context: Context) -> list[Mod]:
    """Return what the configuration asks for between a device and its answers."""
    run = (str(context.run_config["conf"]), str(context.run_config["overrides"]))
    return private_mods(cached_experiment(*run).conf.privacy)


app = numpy_client_app(client_fn, mods_of)
