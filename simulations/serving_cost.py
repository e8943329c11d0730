"""``dccl cost`` where devices only serve: what a batch takes them, module by module."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import nn

from dccl_flower.config import Conf
from dccl_flower.learning.cost import Batch, forward_macs, num_samples
from dccl_flower.method import Served
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.reports import machine, versions

WARM_UP, TIMED = 5, 30


def serving_report(conf: Conf, served: Callable[..., Served]) -> dict[str, Any]:
    """Return parameters, multiply-accumulates and median milliseconds a batch, by module.

    Weights are not trained. Milliseconds are measured here, on ``runtime.threads`` threads. Shares
    are of the first module. Raises ConfError where a model does not go with the data.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(conf.runtime.threads)
    try:
        modules = served(open_experiment(conf))
        costs = {name: _cost(*each) for name, each in modules.items()}
    finally:
        torch.set_num_threads(threads)
    first = next(iter(costs.values()))
    shares = {
        name: {key: value / first[key] if first[key] else None for key, value in cost.items()}
        for name, cost in costs.items()
    }
    size = num_samples(next(iter(modules.values()))[1])
    found = versions()
    return {
        "conf": conf.name,
        "batch_size": size,
        "threads": conf.runtime.threads,
        "costs": costs,
        "share_of_first": shares,
        "versions": found,
    }


def serving_table(report: dict[str, Any]) -> Table:
    """Return the report as a table."""
    title = f"{report['conf']}, a batch of {report['batch_size']} samples"
    found = report["versions"]
    table = Table(title=title, caption=f"{machine(found, found)}, {report['threads']} thread(s)")
    table.add_column("module")
    for heading in ("parameters", "share", "MACs", "share", "ms", "share"):
        table.add_column(heading, justify="right")
    for name, cost in report["costs"].items():
        cells = []
        for (key, value), style in zip(cost.items(), (",", ",", ".2f"), strict=True):
            share = report["share_of_first"][name][key]
            cells += [format(value, style), "-" if share is None else f"{share:.1%}"]
        table.add_row(name, *cells)
    return table


def _cost(module: nn.Module, inputs: Batch) -> dict[str, float]:
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "macs": forward_macs(module, inputs),
        "milliseconds": _milliseconds(module, inputs),
    }


@torch.inference_mode()
def _milliseconds(module: nn.Module, inputs: Batch) -> float:
    module.eval()
    taken = []
    for _ in range(WARM_UP + TIMED):
        started = time.perf_counter()
        module(inputs)
        taken.append(time.perf_counter() - started)
    return 1e3 * median(taken[WARM_UP:])
