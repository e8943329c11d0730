"""DC-CCL as Flower's server sees it: one class, its hooks in the order of a round.

Ding, Niu, Wu, Tang, Lyu and Chen, "DC-CCL: Device-Cloud Collaborative Controlled Learning for
Large Vision Models", arXiv 2303.10361.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from dccl_flower.checkpoint import to_bytes
from dccl_flower.cloud import Cloud
from dccl_flower.config import RoundsConf
from dccl_flower.flower.courier import Courier, DeviceReply
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.nodes import NodeDirectory, check_node_count
from dccl_flower.flower.privacy import refuse_with_privacy
from dccl_flower.flower.wire import to_arrays, to_state
from dccl_flower.learning.controlled import STATISTICS, LocalRecipe, round_recipe
from dccl_flower.learning.fusion import Copy, Fusion, State, average
from dccl_flower.learning.head_tuning import apply_head_gradient, head_part
from dccl_flower.learning.losses import LOSSES
from dccl_flower.learning.server_update import ServerUpdate
from dccl_flower.seeds import numpy_generator


class DcCcl(FedAvg):
    """Devices and cloud train copies of a co-submodel under a mimic; a fusion rule joins them.

    ``arrays`` is the co-submodel. The cloud pretrains and distils on the first round unless it is
    prepared already. ``num_devices`` logical devices are shared out to the nodes; ``num_nodes``
    says how many nodes to wait for (a simulation knows). ``statistics`` says what batch norms do,
    once ``rounds.freeze_statistics_after`` is over: see LocalRecipe; ``fused`` and ``mixed`` need a
    fusion with pooled statistics. ``class_counts`` has devices tell theirs, which some fusion rules
    need. ``exemplar_choice`` is ``random`` or ``herded``. ``seed`` fixes the cohorts and every draw
    of a device. Raises AggregationError where less than ``rounds.min_replies`` of a cohort
    answer or an answer does not fit, and ValueError for options that differential privacy
    excludes.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        num_devices: int,
        devices_per_round: int | None = None,
        num_nodes: int | None = None,
        rounds: RoundsConf | None = None,
        loss: str = "ce",
        fusion: Fusion = average,
        class_counts: bool = False,
        statistics: str = "batch",
        head_tuning: bool = False,
        exemplars: int = 0,
        exemplar_choice: str = "random",
        seed: int = 0,
        fraction_evaluate: float = 0.0,
    ) -> None:
        cohort_size = num_devices if devices_per_round is None else devices_per_round
        if not 1 <= cohort_size <= num_devices:
            raise ValueError(f"devices_per_round={cohort_size}: must lie in 1..{num_devices}")
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")
        if statistics not in STATISTICS:
            allowed = ", ".join(STATISTICS)
            raise ValueError(f"statistics={statistics!r}: expected one of {allowed}")
        super().__init__(fraction_evaluate=fraction_evaluate)
        self.cloud = cloud
        self.ledger = Ledger()
        self.replies: list[DeviceReply] = []
        self._num_devices = num_devices
        self._cohort_size = cohort_size
        self._num_nodes = num_nodes
        self._rounds = rounds or RoundsConf()
        self._loss = loss
        self._class_counts = class_counts
        self._statistics = statistics
        self._head_tuning = head_tuning
        self._exemplars = exemplars
        self._exemplar_choice = exemplar_choice
        self._server = ServerUpdate(self._rounds, fusion)
        self._seed = seed
        self._courier: Courier | None = None
        self._cohort: list[int] = []
        self._fused: State | None = None
        self._cloud_copy: Future[State] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cloud")

    def summary(self) -> None:
        """Log what the rounds will do."""
        logger = logging.getLogger("flwr")
        logger.info("\t├──> Devices: %d, a round: %d", self._num_devices, self._cohort_size)
        logger.info("\t├──> Local steps: %d, loss: %s", self._rounds.local_steps, self._loss)
        logger.info("\t└──> Weight of the cloud's copy: %.2f", self._rounds.cloud_weight)

    def initial_arrays(self) -> ArrayRecord:
        """Return the co-submodel's first state, for ``start(initial_arrays=...)``."""
        return to_arrays(self.cloud.initial_co_state())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort, start the cloud's own training, make one message a device."""
        self._co = to_state(arrays)
        refuse_with_privacy(config, self._co, self._fused, self._head_tuning, self._class_counts)
        courier = self._meet(grid)
        self._cohort = self._draw_cohort("cohort", server_round, self._cohort_size)
        for_cloud, for_devices = self._server.corrections()
        self._config = self._round_config(server_round, config)
        beside_cloud, beside_devices = self._server.other_sides()
        extra: dict[str, Any] = {"own-share": beside_devices.own_share}
        if for_devices:
            extra["correction"] = to_bytes(for_devices)
        if beside_devices.statistics:
            extra["statistics-cloud"] = to_bytes(dict(beside_devices.statistics))
        messages = courier.messages(self._cohort, arrays, {**self._config, **extra}, "train")
        if self._rounds.cloud_weight > 0:
            recipe = self._recipe(server_round)
            self._cloud_copy = self._thread.submit(
                self.cloud.train_co,
                self._co,
                self._loss,
                recipe,
                server_round,
                for_cloud,
                self._rounds.keep_momentum,
                beside_cloud,
            )
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, fuse them with the cloud's copy, tune the head where asked for."""
        assert self._courier is not None
        self.replies = self._courier.read(replies, self._cohort, self._co)
        devices = [reply.copy for reply in self.replies]
        recipe = self._recipe(server_round)
        self._fused = self._server.next_state(self._co, self._cloud_side(), devices, recipe)
        if self._head_tuning:
            self._fused = self._tune_head(server_round, self._fused, self._courier)
        contents = [reply.content for reply in self.replies]
        return to_arrays(self._fused), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have a cohort score mimic + co on its own samples, where asked for at all."""
        if self.fraction_evaluate == 0:
            return []
        size = max(1, round(self._num_devices * self.fraction_evaluate))
        cohort = self._draw_cohort("evaluate", server_round, size)
        round_config = self._round_config(server_round, config)
        return self._meet(grid).messages(cohort, arrays, round_config, "evaluate")

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the devices' scores by sample count."""
        by_device = {}
        for reply in replies:
            if reply.has_content():
                self.ledger.received(reply.content)
                (metrics,) = reply.content.metric_records.values()
                by_device[metrics.pop("device")] = reply
        in_order = [by_device[device] for device in sorted(by_device)]
        return super().aggregate_evaluate(server_round, in_order)

    def _meet(self, grid: Grid) -> Courier:
        """Do once what takes long: pretrain, distil, and learn which node plays which device."""
        if self._courier is None:
            check_node_count(len(list(grid.get_node_ids())), self._num_devices)
            self.cloud.prepare()
            blobs = {"mimic": self.cloud.control_blob()}
            if self._exemplars > 0:
                blobs["exemplars"] = self.cloud.exemplar_blob(
                    self._exemplars, self._exemplar_choice
                )
            directory = NodeDirectory(grid, self._num_devices, self.ledger, self._num_nodes)
            minimum, timeout = self._rounds.min_replies, self._rounds.timeout
            self._courier = Courier(grid, directory, self.ledger, blobs, minimum, timeout)
        return self._courier

    def _draw_cohort(self, purpose: str, server_round: int, size: int) -> list[int]:
        draw = numpy_generator(self._seed, purpose, "round", server_round)
        return sorted(draw.choice(self._num_devices, size, replace=False).tolist())

    def _cloud_side(self) -> Copy | None:
        if self._cloud_copy is None:
            return None
        counts = self.cloud.class_counts() if self._class_counts else None
        return Copy(self._cloud_copy.result(), 0, counts)

    def _recipe(self, server_round: int) -> LocalRecipe:
        return round_recipe(self._rounds, server_round, self._statistics)

    def _round_config(self, server_round: int, config: ConfigRecord) -> dict[str, Any]:
        recipe = {k.replace("_", "-"): v for k, v in vars(self._recipe(server_round)).items()}
        own = {
            "server-round": server_round,
            "seed": self._seed,
            "loss": self._loss,
            "keep-momentum": self._rounds.keep_momentum,
            "tell-class-counts": self._class_counts,
        }
        return {**config, **recipe, **own}

    def _tune_head(self, server_round: int, state: State, courier: Courier) -> State:
        """Step the head along the gradient of everybody's samples, fused as copies are.

        Each step sends the whole co-submodel down, since a device keeps none between messages.

        It runs here rather than in the next ``configure_train`` so that the last round is tuned
        too, and the score of a round is that of its tuned head.
        """
        rounds = self._rounds
        for step in range(rounds.head_tuning_steps):
            like = head_part(self.cloud.co_submodel, state)
            config = {**self._config, "head-step": step}
            replies = courier.ask(self._cohort, to_arrays(state), config, like)
            own = None
            if rounds.cloud_weight > 0:
                gradient = self.cloud.head_gradient(
                    state, self._loss, rounds.local_steps, server_round, step
                )
                own = Copy(gradient, 0)
            gradient = average(own, [reply.copy for reply in replies], rounds.cloud_weight)
            state = apply_head_gradient(state, gradient, rounds.head_tuning_lr)
        return state
