"""Stock Flower for ``dccl scale``: what a Flower user writes, with nothing of ours on its way.

The co-submodel alone, one device a node, a plain NumPyClient under Flower's own FedAvg.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower.config import Conf
from dccl_flower.flower.device_app import Arrays
from dccl_flower.image_config import RoundsConf
from dccl_flower.simulations.app.events import EventWriter
from dccl_flower.simulations.app.run_folder import claim_folder
from dccl_flower.simulations.experiment import device_store
from dccl_flower.simulations.scale.workload import (
    co_submodel,
    device_samples,
    image_experiment,
    train,
)

FIRST_TURN = "first_turn"
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the co-submodel by federated averaging, and tell of each round in the events file."""
    folder = Path(str(context.run_config["output"]))
    claim_folder(folder)
    events = EventWriter(folder)
    events.write("started")
    try:
        experiment = image_experiment(str(context.run_config["conf"]))
        conf = experiment.conf
        torch.set_num_threads(conf.runtime.server_threads)
        strategy(conf).start(
            grid,
            ArrayRecord(get_weights(co_submodel(experiment))),
            num_rounds=conf.rounds.count,
            timeout=conf.rounds.timeout,
            evaluate_fn=RoundEvents(events, conf),
        )
    except BaseException as error:
        events.write("failed", cause=" ".join(f"{type(error).__name__}: {error}".split()))
        raise
    events.write("finished")


def strategy(conf: Conf) -> FedAvg:
    """Return Flower's own strategy, told how records of a NumPyClient are called."""
    count = conf.devices.count
    cohort = conf.devices.per_round or count
    return FedAvg(
        fraction_train=cohort / count,
        fraction_evaluate=0.0,
        min_train_nodes=cohort,
        min_available_nodes=count,
        weighted_by_key="num_examples",
        arrayrecord_key="fitins.parameters",
        configrecord_key="fitins.config",
    )


@dataclass
class RoundEvents:
    """Flower's ``evaluate_fn``: says that a round is over, and scores nothing."""

    events: EventWriter
    conf: Conf
    began: float = field(default_factory=time.monotonic)

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Write the event of a round; round 0 only starts the clock."""
        if server_round > 0:
            turns = self.conf.devices.per_round or self.conf.devices.count
            sent = turns * arrays.count_bytes()
            self.events.write(
                "round",
                round=server_round,
                total=self.conf.rounds.count,
                seconds=time.monotonic() - self.began,
                turns=turns,
                bytes_down=sent,
                bytes_up=sent,
            )
        self.began = time.monotonic()
        return None


@dataclass
class PlainClient(NumPyClient):
    """A device that trains what it is sent on its own samples."""

    net: nn.Module
    loader: DataLoader[Any]
    rounds: RoundsConf

    def fit(self, parameters: Arrays, config: dict[str, Any]) -> tuple[Arrays, int, dict[str, Any]]:
        """Take a round's steps and return the weights and the sample count."""
        set_weights(self.net, parameters)
        epochs = chain.from_iterable(repeat(self.loader))
        train(self.net, islice(epochs, self.rounds.local_steps), self.rounds)
        return get_weights(self.net), len(self.loader.dataset), {}  # type: ignore[arg-type]


def get_weights(net: nn.Module) -> Arrays:
    """Return all of a model's arrays in the order of its state."""
    return [tensor.cpu().numpy() for tensor in net.state_dict().values()]


def set_weights(net: nn.Module, parameters: Arrays) -> None:
    """Load what :func:`get_weights` returned."""
    tensors = (torch.tensor(array) for array in parameters)
    net.load_state_dict(dict(zip(net.state_dict(), tensors, strict=True)))


def client_fn(context: Context) -> Client:
    """Return the client of a node, which is the device of the same number."""
    conf_path = str(context.run_config["conf"])
    experiment = image_experiment(conf_path)
    torch.set_num_threads(experiment.conf.runtime.threads)
    first_turn = device_store(experiment.conf, context.run_id) / FIRST_TURN
    if not first_turn.exists():
        first_turn.touch()
    rounds = experiment.conf.rounds
    size = rounds.device_batch_size
    samples = TensorDataset(*device_samples(experiment, int(context.node_config["partition-id"])))
    loader = DataLoader(samples, size, shuffle=True, drop_last=len(samples) > size)
    return PlainClient(_net(conf_path), loader, rounds).to_client()


@cache
def _net(conf_path: str) -> nn.Module:
    """Build the co-submodel once a process."""
    return co_submodel(image_experiment(conf_path))


client_app = ClientApp(client_fn=client_fn)
