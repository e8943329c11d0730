from __future__ import annotations

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from local_grid import LocalGrid

from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.nodes import FederationError, by_node, meet_nodes, node_of
from dccl_flower.flower.numpy_client_app import numpy_client_app


def grid_of(num_nodes):
    return LocalGrid(numpy_client_app(lambda context: None), num_nodes)


def test_nodes_are_sorted_by_partition_id_not_by_node_id():
    grid = grid_of(3)
    nodes, _ = meet_nodes(grid, 3, Ledger())
    assert sorted(grid.get_node_ids()) == [986, 993, 1000]
    assert nodes == [1000, 993, 986]


def test_devices_wrap_around_the_nodes():
    nodes, _ = meet_nodes(grid_of(2), 5, Ledger())
    assert [node_of(nodes, d) for d in range(5)] == [1000, 993, 1000, 993, 1000]
    assert by_node(nodes, [1, 2, 4]) == {993: [1], 1000: [2, 4]}


def test_all_nodes_of_the_simulation_are_awaited():
    grid = grid_of(4)
    all_ids, asked = grid.get_node_ids(), []

    def late():
        asked.append(None)
        return set(list(all_ids)[:1]) if len(asked) < 4 else all_ids

    grid.get_node_ids = late
    assert len(meet_nodes(grid, 4, Ledger()).nodes) == 4


def test_nodes_that_never_come_are_an_error():
    with pytest.raises(FederationError, match="only 2 of 3 nodes"):
        meet_nodes(grid_of(2), 3, Ledger(), num_nodes=3, timeout=0.0)


def test_more_nodes_than_devices_are_an_error():
    with pytest.raises(FederationError, match="3 nodes for 2 devices"):
        meet_nodes(grid_of(3), 2, Ledger())


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({}, "no partition id"),
        ({"partition-id": 0}, "set num_nodes"),
        ({"partition-id": 0, "num-partitions": 2}, "share a partition id"),
    ],
)
def test_nodes_need_partition_ids_of_their_own(known, message):
    app = ClientApp()

    @app.query("node")
    def node(request, context):
        return Message(RecordDict({"metrics": MetricRecord(known)}), reply_to=request)

    with pytest.raises(FederationError, match=message):
        meet_nodes(LocalGrid(app, 2), 2, Ledger())


def test_the_questions_are_on_the_ledger():
    ledger = Ledger()
    meet_nodes(grid_of(2), 2, ledger)
    assert ledger.totals["other_down"] == 2 * len("ask" + "partition-id")
    assert ledger.totals["other_up"] == 2 * (len("partition-id" + "num-partitions") + 16)
