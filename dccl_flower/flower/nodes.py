"""Which node plays which device: Flower's node ids are random, partition ids are not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from dccl_flower.flower.ledger import Ledger

POLL_SECONDS = 0.1


class FederationError(RuntimeError):
    """The federation cannot do what the run needs; the message is one line for the user."""


class NodeDirectory:
    """Device d runs on node d mod n of the n nodes, sorted by partition id.

    Waits for ``num_nodes`` nodes, by default for as many as the nodes of a simulation say they are.
    Raises FederationError where they do not come, or where there are more nodes than devices.
    """

    def __init__(
        self,
        grid: Grid,
        num_devices: int,
        ledger: Ledger,
        num_nodes: int | None = None,
        timeout: float = 300.0,
    ) -> None:
        self._grid = grid
        self._ledger = ledger
        places = self._meet_all(num_nodes, time.monotonic() + timeout)
        check_node_count(len(places), num_devices)
        partitions = sorted(partition for partition, _ in places.values())
        if len(set(partitions)) < len(partitions):
            raise FederationError(f"two nodes share a partition id: {partitions}")
        self.nodes = sorted(places, key=lambda node: places[node][0])

    def node_of(self, device: int) -> int:
        """Return the node id that plays a device."""
        return self.nodes[device % len(self.nodes)]

    def by_node(self, devices: Iterable[int]) -> dict[int, list[int]]:
        """Return the devices of each node that plays any, in the order given."""
        groups: dict[int, list[int]] = {}
        for device in devices:
            groups.setdefault(self.node_of(device), []).append(device)
        return groups

    def _meet_all(self, num_nodes: int | None, deadline: float) -> dict[int, tuple[int, int]]:
        """Return partition id and number of partitions of each node, once all have answered."""
        places: dict[int, tuple[int, int]] = {}
        expected = num_nodes or 1
        while True:
            new = [node for node in self._grid.get_node_ids() if node not in places]
            places |= self._ask(new, deadline)
            if num_nodes is None and places:
                expected = max(total for _, total in places.values())
                if expected == 0:
                    raise FederationError("the nodes do not tell how many they are: set num_nodes")
            if len(places) >= expected:
                return places
            if time.monotonic() > deadline:
                raise FederationError(f"only {len(places)} of {expected} nodes came in time")
            time.sleep(POLL_SECONDS)

    def _ask(self, ids: Sequence[int], deadline: float) -> dict[int, tuple[int, int]]:
        # Flower refuses an empty message; the key says what is asked.
        content = RecordDict({"config": ConfigRecord({"ask": "partition-id"})})
        messages = [Message(content, dst_node_id=i, message_type="query.node") for i in ids]
        for message in messages:
            self._ledger.sent(message.content)
        places = {}
        patience = max(1.0, deadline - time.monotonic())
        for reply in self._grid.send_and_receive(messages, timeout=patience) if messages else []:
            if reply.has_error():
                raise FederationError(f"a node cannot say who it is: {reply.error.reason}")
            self._ledger.received(reply.content)
            (metrics,) = reply.content.metric_records.values()
            if "partition-id" not in metrics:
                raise FederationError(
                    "a node has no partition id: start it with --node-config 'partition-id=0'"
                )
            partition = int(metrics["partition-id"])  # type: ignore[arg-type]
            total = int(metrics.get("num-partitions", 0))  # type: ignore[arg-type]
            places[reply.metadata.src_node_id] = (partition, total)
        return places


def check_node_count(num_nodes: int, num_devices: int) -> None:
    """Raise FederationError where there are more nodes than devices."""
    if num_nodes > num_devices:
        raise FederationError(
            f"{num_nodes} nodes for {num_devices} devices: at most one node a device"
        )
