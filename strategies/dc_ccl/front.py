"""DC-CCL as Flower's users meet it: a strategy for the server, a NumPyClient for devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import nn

from dccl_flower.codecs import CODECS, FP32
from dccl_flower.config import TwoSidedRoundsConf
from dccl_flower.fleet.profiles import Fleet
from dccl_flower.fleet.roster import FaultPolicy, Roster, Rules
from dccl_flower.flower.device_app import Arrays, DeviceClient, Metrics
from dccl_flower.flower.rounds import Rounds
from dccl_flower.learning.controlled import MEASURED
from dccl_flower.learning.fusion import Fusion, State
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.device import DcCclDevice
from dccl_flower.strategies.dc_ccl.method import DcCclServer, Settings


class DcCcl(Rounds):
    """Flower's strategy for DC-CCL; ``arrays`` is the co-submodel.

    The cloud pretrains and distils on the first round unless it is prepared already.
    ``num_devices`` logical devices are shared out to the nodes; ``num_nodes`` says how many nodes
    to wait for (a simulation knows). With a ``fleet`` devices are of tiers, and a virtual clock
    says who answers in time under ``rules``. ``codec``: ``fp32``, ``fp16``, ``int8``, ``named``.
    ``devices_per_node`` lets a message speak to several devices of a node. ``seed`` fixes the
    cohorts and every draw of a device. All other options are those of :class:`Settings`. Raises
    AggregationError where less than ``rounds.min_replies`` of a cohort answer, and ValueError for
    options that are unknown, clash, or are excluded by differential privacy.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        num_devices: int,
        devices_per_round: int | None = None,
        num_nodes: int | None = None,
        fleet: Fleet | None = None,
        rules: Rules | None = None,
        rounds: TwoSidedRoundsConf | None = None,
        codec: str = "fp32",
        devices_per_node: int = 1,
        seed: int = 0,
        fraction_evaluate: float = 0.0,
        **settings: Any,
    ) -> None:
        if codec not in CODECS:
            raise ValueError(f"codec={codec!r}: expected one of {', '.join(CODECS)}")
        rounds, chosen = rounds or TwoSidedRoundsConf(), Settings(**settings)
        if devices_per_node != 1:
            check_merging(chosen, rounds)
        self.cloud = cloud
        super().__init__(
            DcCclServer(cloud, chosen, rounds, fleet),
            Roster(num_devices, devices_per_round, seed, fleet, rules),
            codec=CODECS[codec],
            policy=FaultPolicy(rounds.min_replies, rounds.timeout),
            num_nodes=num_nodes,
            devices_per_node=devices_per_node,
            fraction_evaluate=fraction_evaluate,
        )

    def co_state(self, arrays: ArrayRecord) -> State:
        """Return the co-submodel's state, by name, that ``arrays`` of this strategy stand for."""
        return self.state(arrays)


class DcCclClient(DeviceClient):
    """A device of DC-CCL; which device it plays stands in each message's config.

    ``load_data`` gives a device id's private batches, e.g. a DataLoader. ``store`` is the folder
    where a device keeps what it was sent between rounds. All else as in :class:`DcCclDevice`.
    """

    def __init__(
        self,
        co_submodel: nn.Module,
        control: nn.Module,
        load_data: Callable[[int], Any],
        store: str | os.PathLike[str],
        torch_device: torch.device | str = "cpu",
        cache_logits: bool = True,
        head: str | None = None,
    ) -> None:
        self._co_submodel = co_submodel
        half = DcCclDevice(co_submodel, control, torch_device, cache_logits, head)
        super().__init__(half, load_data, store)

    def get_parameters(self, config: Metrics) -> Arrays:
        """Return the co-submodel's exchanged state, as the wire carries it without compression."""
        return FP32.encode(exchanged_state(self._co_submodel))


def check_merging(settings: Settings, rounds: TwoSidedRoundsConf) -> None:
    """Raise ValueError where merged copies would not fuse as they would one by one."""
    fusion = settings.fusion
    if not isinstance(fusion, Fusion):
        raise ValueError(f"devices_per_node: not with fusion={fusion!r}, which is not a Fusion")
    if settings.statistics in MEASURED and not fusion.pooled_statistics:
        given = f"statistics={settings.statistics!r}"
        raise ValueError(f"devices_per_node: with {given} it needs a fusion with pooled statistics")
    if rounds.scaffold and fusion.class_wise_head:
        raise ValueError("devices_per_node: not with SCAFFOLD and a class-wise head together")
