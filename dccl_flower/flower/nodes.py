"""Which node plays which device: Flower's node ids are random, partition ids are not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from dccl_flower.flower.ledger import Ledger

POLL_SECONDS = 0.1
MODS = "mods"  # how many change what a node answers


class FederationError(RuntimeError):
    """The federation cannot do what the run needs; the message is one line for the user."""


class Met(NamedTuple):
    """All nodes, sorted by partition id, and whether mods change what some of them answer."""

    nodes: list[int]
    mods_are_there: bool


def meet_nodes(
    grid: Grid,
    num_devices: int,
    ledger: Ledger,
    num_nodes: int | None = None,
    timeout: float = 300.0,
) -> Met:
    """Return the ids of all nodes, sorted by partition id.

    Waits for ``num_nodes`` nodes, by default for as many as the nodes of a simulation say they are.
    Raises FederationError where they do not come, or where there are more nodes than devices.
    """
    deadline = time.monotonic() + timeout
    # Partition id, number of partitions and of mods, by node.
    places: dict[int, tuple[int, int, int]] = {}
    expected = num_nodes or 1
    while True:
        new = [node for node in grid.get_node_ids() if node not in places]
        places |= _ask(grid, new, ledger, deadline)
        if num_nodes is None and places:
            expected = max(total for _, total, _ in places.values())
            if expected == 0:
                raise FederationError("the nodes do not tell how many they are: set num_nodes")
        if len(places) >= expected:
            break
        if time.monotonic() > deadline:
            raise FederationError(f"only {len(places)} of {expected} nodes came in time")
        time.sleep(POLL_SECONDS)
    check_node_count(len(places), num_devices)
    partitions = sorted(partition for partition, _, _ in places.values())
    if len(set(partitions)) < len(partitions):
        raise FederationError(f"two nodes share a partition id: {partitions}")
    in_order = sorted(places, key=lambda node: places[node][0])
    return Met(in_order, any(mods for _, _, mods in places.values()))


def node_of(nodes: Sequence[int], device: int) -> int:
    """Return the node that plays a device: d mod n of the n nodes."""
    return nodes[device % len(nodes)]


def by_node(nodes: Sequence[int], devices: Iterable[int]) -> dict[int, list[int]]:
    """Return the devices of each node that plays any, in the order given."""
    groups: dict[int, list[int]] = {}
    for device in devices:
        groups.setdefault(node_of(nodes, device), []).append(device)
    return groups


def check_node_count(num_nodes: int, num_devices: int) -> None:
    """Raise FederationError where there are more nodes than devices."""
    if num_nodes > num_devices:
        given = f"{num_nodes} nodes for {num_devices} devices"
        raise FederationError(f"{given}: at most one node a device")


def _ask(
    grid: Grid, nodes: Sequence[int], ledger: Ledger, deadline: float
) -> dict[int, tuple[int, int, int]]:
    if not nodes:
        return {}
    # Flower refuses an empty message; the key says what is asked.
    content = RecordDict({"config": ConfigRecord({"ask": "partition-id"})})
    ledger.sent(content, devices=len(nodes))
    messages = [Message(content, dst_node_id=i, message_type="query.node") for i in nodes]
    places: dict[int, tuple[int, int, int]] = {}
    patience = max(1.0, deadline - time.monotonic())
    for reply in grid.send_and_receive(messages, timeout=patience):
        if reply.has_error():
            cause = " ".join((reply.error.reason or "no reason given").split())
            raise FederationError(f"a node cannot say who it is: {cause}")
        ledger.received(reply.content)
        places[reply.metadata.src_node_id] = _place(reply.content)
    return places


def _place(content: RecordDict) -> tuple[int, int, int]:
    """Return what a node says: its partition id, the number of partitions, and of mods."""
    told: dict[str, Any] = {"num-partitions": 0, MODS: 0}
    for metrics in content.metric_records.values():
        told |= metrics
    if "partition-id" not in told:
        way_out = "start it with --node-config 'partition-id=0'"
        raise FederationError(f"a node has no partition id: {way_out}")
    place, total, mods = (told[key] for key in ("partition-id", "num-partitions", MODS))
    if any(type(number) is not int for number in (place, total, mods)):
        raise FederationError(f"a node says that it is {place!r:.80} of {total!r:.80} partitions")
    return place, total, mods
