"""The devices' side of ``flwr run``."""

from __future__ import annotations

from functools import cache

import torch
from flwr.app import Context
from torch import nn

from dccl_flower.flower.numpy_client_app import numpy_client_app
from dccl_flower.simulations.experiment import cached_experiment, device_store
from dccl_flower.strategies.dc_ccl.device import DcCclClient


def client_fn(context: Context) -> DcCclClient:
    """Return the client for one message; data and modules stay in the worker process.

    Not so with ``runtime.resident=false``, where each message meets them anew, as in a deployment.
    """
    run = (str(context.run_config["conf"]), str(context.run_config["overrides"]))
    experiment = cached_experiment(*run)
    torch.set_num_threads(experiment.conf.runtime.threads)
    co, control = _scratch_modules(*run)
    store = device_store(experiment.conf, context.run_id)
    if not experiment.conf.runtime.resident:
        cached_experiment.cache_clear()
        _scratch_modules.cache_clear()
    return DcCclClient(
        co,
        control,
        experiment.device_loader,
        store,
        experiment.torch_device,
        experiment.conf.runtime.cache_logits,
    )


@cache
def _scratch_modules(name_or_path: str, overrides: str) -> tuple[nn.Module, nn.Module]:
    """Build the modules that all devices of this process train in, one after the other."""
    return cached_experiment(name_or_path, overrides).device_modules()


app = numpy_client_app(client_fn)
