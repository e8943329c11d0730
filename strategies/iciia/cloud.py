"""What ICIIA's cloud does once: it trains the module on clients simulated among its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
from torch import nn

from dccl_flower.codecs import State
from dccl_flower.config import ConfError
from dccl_flower.image_experiment import EVALUATION_BATCH, ImageExperiment
from dccl_flower.learning.client_attention import Client, seen_by
from dccl_flower.method import OnProgress
from dccl_flower.models.features import Featured
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies.iciia.adaptations import Adaptation, Grounds
from dccl_flower.strategies.iciia.conf import conf_of
from dccl_flower.strategies.kept import cloud_key, kept_models

CLIENTS = "adaptation.clients"
MODULE = "adaptation"


def client_rows(experiment: ImageExperiment) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the rows of simulated clients, of those to train on and of those held out.

    Clients with a single image are left out: it sees no other. Raises ConfError where there are
    fewer images than clients, or no client with two.
    """
    plan, count = experiment.plan, conf_of(experiment).adaptation.clients
    held_out = max(1, round(count * len(plan.validation) / len(plan.cloud)))  # alike in size
    sides = (
        experiment.cloud_clients(count, CLIENTS),
        experiment.validation_clients(held_out, CLIENTS),
    )
    train, validation = ([rows for rows in side if len(rows) > 1] for side in sides)
    if not train or not validation:
        raise ConfError(f"{CLIENTS}={count}: leaves no client two of the cloud's images")
    return train, validation


def train_module(
    module: nn.Module,
    adaptation: Adaptation,
    backbone: Featured,
    experiment: ImageExperiment,
    on_progress: OnProgress,
) -> None:
    """Train the module in place on what the backbone makes of the cloud's images."""
    seed = experiment.conf.seed

    def grounds() -> tuple[list[Client], list[Client]]:
        train, held_out = (
            clients_of(rows, backbone, experiment) for rows in client_rows(experiment)
        )
        return train, held_out

    with isolated_rng(seed, "adaptation", "torch"):
        adaptation.train(
            module,
            backbone,
            Grounds(
                grounds,
                lambda: clients_of(experiment.plan.devices, backbone, experiment),
                torch_generator(seed, "adaptation"),
                partial(on_progress, "adapt"),
            ),
        )


def kept_module(
    key: str, module: nn.Module, experiment: ImageExperiment, train: Callable[[], None]
) -> None:
    """Train the module, or find it in the cache; ``key`` tells where the backbone is from."""
    conf = conf_of(experiment)
    if not conf.runtime.reuse or not module.state_dict():
        train()
        return

    def make() -> dict[str, State]:
        train()
        return {MODULE: module.state_dict()}

    made = asdict(replace(conf.adaptation, cached=None, fewest=1))  # which matter only later
    entry = cloud_key(experiment, key, conf.method.serves, made, asdict(conf.devices))
    module.load_state_dict(kept_models(f"module-{entry}", make)[MODULE])


def clients_of(
    rows: Sequence[np.ndarray], backbone: Featured, experiment: ImageExperiment
) -> list[Client]:
    """Return what the backbone makes of training images, client by client."""
    loader = experiment.training_loader(np.concatenate(list(rows)), EVALUATION_BATCH)
    together = seen_by(backbone, loader, experiment.torch_device)
    return together.split([len(each) for each in rows])
