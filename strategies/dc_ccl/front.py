"""DC-CCL as Flower's users meet it: a strategy for the server, a NumPyClient for devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import nn

from dccl_flower.codecs import CODECS, FP32
from dccl_flower.fleet.judge import FaultPolicy
from dccl_flower.fleet.profiles import Fleet
from dccl_flower.fleet.roster import Roster, Rules
from dccl_flower.flower.device_app import Arrays, DeviceClient, Metrics
from dccl_flower.flower.rounds import Rounds
from dccl_flower.image_config import TwoSidedRoundsConf
from dccl_flower.learning.controlled import MEASURED
from dccl_flower.learning.fusion import Fusion, State
from dccl_flower.learning.head_tuning import FLOOR_ALONE, HeadPrivacy
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.device import DcCclDevice
from dccl_flower.strategies.dc_ccl.method import DcCclServer, Settings

MetricsOf = Callable[[list[RecordDict], str], MetricRecord]


@dataclass(frozen=True)
class Options(Settings):
    """Beside how both sides train: the rounds, who is asked in them, and how models travel.

    ``devices_per_round``, or as a share ``fraction_train``: all by default. ``num_nodes`` says how
    many nodes to wait for (a simulation knows). With a ``fleet`` devices are of tiers, and a
    virtual clock says who answers in time under ``rules``. ``codec``: ``fp32``, ``fp16``, ``int8``,
    ``named``. ``devices_per_node`` lets a message speak to several devices of a node. ``seed``
    fixes the cohorts and every draw of a device. ``train_metrics_aggr_fn`` and
    ``evaluate_metrics_aggr_fn`` join what devices tell, as in Flower's FedAvg. Raises ValueError
    for what is unknown or clashes.
    """

    rounds: TwoSidedRoundsConf | None = None
    devices_per_round: int | None = None
    fraction_train: float = 1.0
    num_nodes: int | None = None
    fleet: Fleet | None = None
    rules: Rules | None = None
    codec: str = "fp32"
    devices_per_node: int = 1
    seed: int = 0
    fraction_evaluate: float = 0.0
    train_metrics_aggr_fn: MetricsOf | None = None
    evaluate_metrics_aggr_fn: MetricsOf | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codec not in CODECS:
            raise ValueError(f"codec={self.codec!r}: expected one of {', '.join(CODECS)}")
        if not 0 < self.fraction_train <= 1:
            raise ValueError(f"fraction_train={self.fraction_train}: must be above 0 and at most 1")
        if self.devices_per_round is not None and self.fraction_train != 1:
            given = f"devices_per_round={self.devices_per_round}"
            raise ValueError(f"fraction_train={self.fraction_train}: not with {given}")
        if self.devices_per_node != 1:
            self._check_merging()

    def cohort(self, num_devices: int) -> int | None:
        """Return how many of the devices are asked in a round; None for all."""
        if self.fraction_train == 1:
            return self.devices_per_round
        return max(1, round(self.fraction_train * num_devices))

    def _check_merging(self) -> None:
        """Raise ValueError where merged copies would not fuse as they would one by one."""
        fusion = self.fusion
        if not isinstance(fusion, Fusion):
            given = f"fusion={fusion!r}"
            raise ValueError(f"devices_per_node: not with {given}, which is not a Fusion")
        if self.statistics in MEASURED and not fusion.pooled_statistics:
            needs = f"with statistics={self.statistics!r} it needs a fusion with pooled statistics"
            raise ValueError(f"devices_per_node: {needs}")
        if self.rounds is not None and self.rounds.scaffold and fusion.class_wise_head:
            raise ValueError("devices_per_node: not with SCAFFOLD and a class-wise head together")


class DcCcl(Rounds):
    """Flower's strategy for DC-CCL; ``arrays`` is the co-submodel.

    The cloud pretrains and distils on the first round unless it is prepared already.
    ``num_devices`` logical devices are shared out to the nodes. ``options`` are those of
    :class:`Options`. Raises AggregationError where less than ``rounds.min_replies`` of a cohort
    answer, and ValueError for options that are unknown, clash, or are excluded by differential
    privacy.
    """

    def __init__(self, cloud: Cloud, *, num_devices: int, **options: Any) -> None:
        given = Options(**options)
        rounds = given.rounds or TwoSidedRoundsConf()
        cohort = (given.cohort(num_devices), given.seed, given.fleet, given.rules)
        self.cloud = cloud
        super().__init__(
            DcCclServer(cloud, given, rounds, given.fleet),
            Roster(num_devices, *cohort),
            codec=CODECS[given.codec],
            policy=FaultPolicy.of(rounds),
            num_nodes=given.num_nodes,
            devices_per_node=given.devices_per_node,
            fraction_evaluate=given.fraction_evaluate,
        )
        # Under the names that Flower's FedAvg keeps them by.
        self.train_metrics_aggr_fn = given.train_metrics_aggr_fn or self.train_metrics_aggr_fn
        self.evaluate_metrics_aggr_fn = (
            given.evaluate_metrics_aggr_fn or self.evaluate_metrics_aggr_fn
        )

    def co_state(self, arrays: ArrayRecord) -> State:
        """Return the co-submodel's state, by name, that ``arrays`` of this strategy stand for."""
        return self.state(arrays)


class DcCclClient(DeviceClient):
    """A device of DC-CCL; which device it plays stands in each message's config.

    ``load_data`` gives a device id's private batches, e.g. a DataLoader. ``store`` is the folder
    where a device keeps what it was sent between rounds, by default one below the cache. All else
    as in :class:`DcCclDevice`.
    """

    def __init__(
        self,
        co_submodel: nn.Module,
        control: nn.Module,
        load_data: Callable[[int], Any],
        store: str | os.PathLike[str] | None = None,
        torch_device: torch.device | str = "cpu",
        cache_logits: bool = True,
        head: str | None = None,
        head_privacy: HeadPrivacy = FLOOR_ALONE,
    ) -> None:
        self._co_submodel = co_submodel
        half = DcCclDevice(co_submodel, control, torch_device, cache_logits, head, head_privacy)
        super().__init__(half, load_data, store)

    def get_parameters(self, config: Metrics) -> Arrays:
        """Return the co-submodel's exchanged state, as the wire carries it without compression."""
        return FP32.encode(exchanged_state(self._co_submodel))
