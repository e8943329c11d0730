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
from dccl_flower.codecs import CODECS
from dccl_flower.config import TwoSidedRoundsConf
from dccl_flower.fleet.cohorts import Cohort, Rules
from dccl_flower.fleet.profiles import Fleet
from dccl_flower.flower.courier import Courier, Errand
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.nodes import NodeDirectory, check_node_count
from dccl_flower.flower.privacy import refuse_with_privacy
from dccl_flower.flower.replies import Reader, Reply
from dccl_flower.flower.roster import Roster
from dccl_flower.flower.wire import to_arrays, to_state
from dccl_flower.learning.controlled import MEASURED, STATISTICS, LocalRecipe, round_recipe
from dccl_flower.learning.fusion import FUSIONS, Copy, Fusion, State, average
from dccl_flower.learning.head_tuning import apply_head_gradient, head_part
from dccl_flower.learning.losses import LOSSES
from dccl_flower.learning.server_update import ServerUpdate
from dccl_flower.learning.widths import level
from dccl_flower.strategies.dc_ccl.cloud import Cloud


class DcCcl(FedAvg):
    """Devices and cloud train copies of a co-submodel under a mimic; a fusion rule joins them.

    ``arrays`` is the co-submodel. The cloud pretrains and distils on the first round unless it is
    prepared already. ``num_devices`` logical devices are shared out to the nodes; ``num_nodes``
    says how many nodes to wait for (a simulation knows). ``statistics`` says what batch norms do,
    once ``rounds.freeze_statistics_after`` is over: see LocalRecipe; ``fused`` and ``mixed`` need a
    fusion with pooled statistics. ``class_counts`` has devices tell theirs, which some fusion rules
    need. With a ``fleet`` devices are of tiers, and a virtual clock says who answers in time under
    ``rules``. ``exemplar_choice`` is ``random`` or ``herded``. ``codec`` is ``fp32``, ``fp16`` or
    ``int8``. ``devices_per_node`` lets a message speak to several devices of a node, whose copies
    the worker merges by a ``fusion`` of FUSIONS. ``seed`` fixes the cohorts and every draw of a
    device. Raises AggregationError where less than ``rounds.min_replies`` of a cohort
    answer or an answer does not fit, and ValueError for options that differential privacy
    excludes.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        num_devices: int,
        devices_per_round: int | None = None,
        fleet: Fleet | None = None,
        rules: Rules | None = None,
        num_nodes: int | None = None,
        rounds: TwoSidedRoundsConf | None = None,
        loss: str = "ce",
        fusion: Fusion = average,
        class_counts: bool = False,
        statistics: str = "batch",
        head_tuning: bool = False,
        exemplars: int = 0,
        exemplar_choice: str = "random",
        codec: str = "fp32",
        devices_per_node: int = 1,
        seed: int = 0,
        fraction_evaluate: float = 0.0,
    ) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r}: expected one of {', '.join(LOSSES)}")
        if statistics not in STATISTICS:
            allowed = ", ".join(STATISTICS)
            raise ValueError(f"statistics={statistics!r}: expected one of {allowed}")
        if codec not in CODECS:
            raise ValueError(f"codec={codec!r}: expected one of {', '.join(CODECS)}")
        self._rounds = rounds or TwoSidedRoundsConf()
        self._fusion_name = next((name for name, rule in FUSIONS.items() if rule is fusion), "")
        if devices_per_node != 1:
            _check_merging(self._fusion_name, statistics, self._rounds)
        super().__init__(fraction_evaluate=fraction_evaluate)
        self.cloud = cloud
        self.ledger = Ledger()
        self.replies: list[Reply] = []
        self._num_nodes = num_nodes
        self._roster = Roster(
            num_devices, devices_per_round, seed, self._rounds, codec, fleet, rules
        )
        if self._roster.has_several_widths and (head_tuning or self._rounds.scaffold):
            raise ValueError("tiers with co_share below 1: not with head tuning or SCAFFOLD")
        self._loss = loss
        self._class_counts = class_counts
        self._statistics = statistics
        self._head_tuning = head_tuning
        self._exemplars = exemplars
        self._exemplar_choice = exemplar_choice
        self._codec = codec
        self._devices_per_node = devices_per_node
        self._server = ServerUpdate(self._rounds, fusion)
        self._seed = seed
        self._courier: Courier | None = None
        self.cohort = Cohort([])
        self._errand: Errand | None = None
        self._fused: State | None = None
        self._cloud_copy: Future[State] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cloud")

    def summary(self) -> None:
        """Log what the rounds will do."""
        logger = logging.getLogger("flwr")
        roster = self._roster
        logger.info("\t├──> Devices: %d, a round: %d", roster.num_devices, roster.per_round)
        logger.info("\t├──> Local steps: %d, loss: %s", self._rounds.local_steps, self._loss)
        logger.info("\t└──> Weight of the cloud's copy: %.2f", self._rounds.cloud_weight)

    def initial_arrays(self) -> ArrayRecord:
        """Return the co-submodel's first state, for ``start(initial_arrays=...)``."""
        return to_arrays(self.cloud.initial_co_state())

    def co_state(self, arrays: ArrayRecord) -> State:
        """Return the co-submodel's state, by name, that ``arrays`` of this strategy stand for."""
        return to_state(arrays, self.cloud.co_state())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort, start the cloud's own training, make one message a device."""
        self._co = self.co_state(arrays)
        self._refuse_with_privacy(config)
        courier = self._meet(grid)
        self.cohort = self._roster.draw(server_round)
        for_cloud, for_devices = self._server.corrections()
        self._config = self._round_config(server_round, config)
        beside_cloud, beside_devices = self._server.other_sides()
        extra: dict[str, Any] = {"own-share": beside_devices.own_share}
        if for_devices:
            extra["correction"] = to_bytes(for_devices)
        if beside_devices.statistics:
            extra["statistics-cloud"] = to_bytes(dict(beside_devices.statistics))
        unanswered = [*self.cohort.late, *self.cohort.gone]
        courier.count_unanswered(self._roster.readers(unanswered, self._co))
        readers = self._roster.readers(self.cohort.devices, self._co)
        self._errand = courier.send(readers, {**self._config, **extra}, "train")
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
        return self._errand.messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, fuse them with the cloud's copy, tune the head where asked for."""
        assert self._courier is not None
        assert self._errand is not None
        self.replies = self._courier.read(self._errand, replies)
        cloud = self._cloud_side()
        devices = level([r.copy for r in self.replies], cloud.state if cloud else self._co)
        recipe = self._recipe(server_round)
        self._fused = self._server.next_state(self._co, cloud, devices, recipe)
        if self._head_tuning:
            self._fused = self._tune_head(server_round, self._fused, self._courier)
        contents = [content for reply in self.replies for content in reply.contents]
        return to_arrays(self._fused), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have a cohort score mimic + co on its own samples, where asked for at all."""
        if self.fraction_evaluate == 0:
            return []
        cohort = self._roster.draw_evaluators(self.fraction_evaluate, server_round)
        round_config = self._round_config(server_round, config)
        readers = self._roster.readers(cohort, self.co_state(arrays))
        return self._meet(grid).send(readers, round_config, "evaluate").messages

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
            num_devices = self._roster.num_devices
            check_node_count(len(list(grid.get_node_ids())), num_devices)
            self.cloud.prepare()
            blobs = {"mimic": self.cloud.control_blob()}
            if self._exemplars > 0:
                blobs["exemplars"] = self.cloud.exemplar_blob(
                    self._exemplars, self._exemplar_choice
                )
            self._roster.prepare(self.cloud, blobs)
            directory = NodeDirectory(grid, num_devices, self.ledger, self._num_nodes)
            self._courier = Courier(
                grid,
                directory,
                self.ledger,
                blobs,
                self._rounds.min_replies,
                self._rounds.timeout,
                self._codec,
                self._devices_per_node,
            )
        return self._courier

    def _refuse_with_privacy(self, config: ConfigRecord) -> None:
        options = {
            "head tuning": self._head_tuning,
            "class counts of devices": self._class_counts,
            f"codec={self._codec}": self._codec != "fp32",
            f"devices_per_node={self._devices_per_node}": self._devices_per_node != 1,
            "tiers with co_share below 1": self._roster.has_several_widths,
        }
        given = [name for name, is_given in options.items() if is_given]
        refuse_with_privacy(config, self._co, self._fused, given)

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
        # Flower cannot count the bytes of an empty string, nor does a device alone fuse anything.
        merging = {"fusion": self._fusion_name} if self._devices_per_node != 1 else {}
        return {**config, **recipe, **own, **merging}

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
            readers = self._roster.readers(self.cohort.devices, state)
            replies = courier.ask(readers, config, Reader(like))
            own = None
            if rounds.cloud_weight > 0:
                gradient = self.cloud.head_gradient(
                    state, self._loss, rounds.local_steps, server_round, step
                )
                own = Copy(gradient, 0)
            gradient = average(own, [reply.copy for reply in replies], rounds.cloud_weight)
            state = apply_head_gradient(state, gradient, rounds.head_tuning_lr)
        return state


def _check_merging(fusion: str, statistics: str, rounds: TwoSidedRoundsConf) -> None:
    """Raise ValueError where merged copies would not fuse as they would one by one."""
    if not fusion:
        raise ValueError(f"devices_per_node: needs a fusion of {', '.join(FUSIONS)}")
    if statistics in MEASURED and not fusion.endswith("_pooled"):
        given = f"statistics={statistics!r}"
        raise ValueError(f"devices_per_node: with {given} it needs a fusion with pooled statistics")
    if rounds.scaffold and fusion.startswith("class_wise_head"):
        raise ValueError("devices_per_node: not with SCAFFOLD and a class-wise head together")
