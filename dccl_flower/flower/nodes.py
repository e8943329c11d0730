"""Which node plays which device: Flower's node ids are random, partition ids are not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

POLL_SECONDS = 0.1


class FederationError(RuntimeError):
    """The federation cannot do what the run needs; the message is one line for the user."""


class NodeDirectory:
    """Device d runs on node d mod n of the n nodes, sorted by partition id.

    Waits for ``num_nodes`` nodes, by default for as many as the simulation says there are.
    Raises FederationError where they do not come, or where there are more nodes than devices.
    """

    def __init__(
        self, grid: Grid, num_devices: int, num_nodes: int | None = None, timeout: float = 300.0
    ) -> None:
        self._grid = grid
        deadline = time.monotonic() + timeout
        ids = self._wait(num_nodes or 1, deadline)
        places = self._ask(ids)
        expected = num_nodes or max(place[1] for place in places.values())
        if len(places) < expected:
            places = self._ask(self._wait(expected, deadline))
        if len(places) > num_devices:
            raise FederationError(
                f"{len(places)} nodes for {num_devices} devices: at most one node a device"
            )
        partitions = [place[0] for place in places.values()]
        if len(set(partitions)) < len(partitions):
            raise FederationError(f"two nodes share a partition id: {sorted(partitions)}")
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

    def _wait(self, count: int, deadline: float) -> list[int]:
        while len(ids := list(self._grid.get_node_ids())) < count:
            if time.monotonic() > deadline:
                raise FederationError(f"only {len(ids)} of {count} nodes came in time")
            time.sleep(POLL_SECONDS)
        return ids

    def _ask(self, ids: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return each node's partition id and the number of partitions it knows of."""
        # Flower refuses an empty message; the key says what is asked.
        content = RecordDict({"config": ConfigRecord({"ask": "partition-id"})})
        messages = [Message(content, dst_node_id=i, message_type="query.node") for i in ids]
        places = {}
        for reply in self._grid.send_and_receive(messages, timeout=60):
            if reply.has_error():
                raise FederationError(f"a node cannot say who it is: {reply.error.reason}")
            (metrics,) = reply.content.metric_records.values()
            if "partition-id" not in metrics:
                raise FederationError(
                    "a node has no partition id: start it with --node-config 'partition-id=0'"
                )
            partition = int(metrics["partition-id"])  # type: ignore[arg-type]
            total = int(metrics.get("num-partitions", 1))  # type: ignore[arg-type]
            places[reply.metadata.src_node_id] = (partition, total)
        return places
