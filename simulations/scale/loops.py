"""The bare torch loop of ``dccl scale``, and the mimic that all its measurements share.

One process, one thread, everything in memory: the least that the same steps can cost.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dccl_flower.image_config import RoundsConf, with_submodels
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.method import Method, find_method
from dccl_flower.models.build import build_device_modules
from dccl_flower.simulations.scale.workload import (
    RoundMeter,
    Samples,
    co_submodel,
    device_samples,
    draw_cohort,
    process_costs,
    train,
)


def prepare_cloud(experiment: ImageExperiment, *_: object) -> dict[str, Any]:
    """Leave what the method prepares in the cache."""
    _prepared(experiment)
    return {}


def measure(experiment: ImageExperiment, *_: object) -> dict[str, Any]:
    """Take the turns and return what they cost; the mimic is taken from the cache."""
    conf, images = replace(with_submodels(experiment.conf), control="mimic"), experiment.images
    mimic = build_device_modules(conf, images.shape, images.num_classes)[1]
    method = _prepared(experiment)
    mimic.load_state_dict(method.state_dict(method.initial_state())["mimic"])
    return loop(experiment, mimic.eval().requires_grad_(False))


def _prepared(experiment: ImageExperiment) -> Method:
    method = find_method(experiment.conf.method.name).server(experiment, lambda *_: None)
    method.prepare()
    return method


def loop(experiment: ImageExperiment, mimic: nn.Module) -> dict[str, Any]:
    """Return the costs of rounds without and, alternating with them, under the mimic's logits."""
    co = co_submodel(experiment)
    state = {name: tensor.clone() for name, tensor in co.state_dict().items()}
    rounds = experiment.conf.rounds
    controls = {"none": None, "mimic": mimic}
    meters = {control: RoundMeter(experiment.cohort_size) for control in controls}
    first_turn_at = time.time()
    for server_round in range(1, rounds.count + 1):
        cohort = [device_samples(experiment, d) for d in draw_cohort(experiment, server_round)]
        for control, module in controls.items():
            meters[control].begin()
            for samples in cohort:
                take_turn(co, state, samples, rounds, module)
            meters[control].end_round()
    return process_costs({name: meter.costs for name, meter in meters.items()}, first_turn_at)


def take_turn(
    co: nn.Module,
    state: dict[str, Tensor],
    samples: Samples,
    rounds: RoundsConf,
    control: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Load the weights, take a round's steps on shuffled samples, and return the new weights."""
    co.load_state_dict(state)
    images, labels = samples
    batches = ((images[rows], labels[rows]) for rows in _batches(len(labels), rounds))
    train(co, batches, rounds, control)
    return {name: tensor.clone() for name, tensor in co.state_dict().items()}


def _batches(num_samples: int, rounds: RoundsConf) -> list[Tensor]:
    """Return positions for each step, epoch after epoch, each in another order."""
    batches: list[Tensor] = []
    while len(batches) < rounds.local_steps:
        order = torch.randperm(num_samples)
        batches += [part for part in order.split(rounds.device_batch_size) if len(part) > 1]
    return batches[: rounds.local_steps]
