from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dccl_flower.simulations.local_grid import LocalGrid


def echo_app():
    """An app that tells what it was sent, and where it believes to run."""
    app = ClientApp()

    @app.query("node")
    def node(request, context):
        told = {**request.content["config"], **context.node_config, "node": context.node_id}
        return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=request)

    @app.query("trouble")
    def trouble(request, context):
        raise ArithmeticError(f"node {context.node_id} is in trouble")

    return app


def question(node, kind="query.node", **config):
    content = RecordDict({"config": ConfigRecord(config)})
    return Message(content, dst_node_id=node, message_type=kind)


def ask(grid, *questions):
    return grid.send_and_receive([question(node, n=n) for node, n in questions], timeout=1.0)


def test_nodes_are_numbered_from_one():
    assert LocalGrid(echo_app(), 3).get_node_ids() == [1, 2, 3]


def test_replies_come_in_the_order_of_the_messages_and_from_their_nodes():
    # Flower refuses a message outside a run: the grid must be there first.
    replies = ask(LocalGrid(echo_app(), 3), (3, 10), (1, 11), (3, 12), (2, 13))
    assert [reply.content["metrics"]["n"] for reply in replies] == [10, 11, 12, 13]
    assert [reply.content["metrics"]["node"] for reply in replies] == [3, 1, 3, 2]
    assert [reply.metadata.src_node_id for reply in replies] == [3, 1, 3, 2]


def test_node_n_is_partition_n_of_all_nodes():
    replies = ask(LocalGrid(echo_app(), 3), (1, 0), (2, 0), (3, 0))
    places = [reply.content["metrics"] for reply in replies]
    assert [place["partition-id"] for place in places] == [0, 1, 2]
    assert [place["num-partitions"] for place in places] == [3, 3, 3]


def test_every_reply_names_the_message_it_answers():
    grid = LocalGrid(echo_app(), 2)
    messages = [question(node, n=0) for node in (1, 2, 1)]
    replies = grid.send_and_receive(messages)
    ids = [message.metadata.message_id for message in messages]
    assert len(set(ids)) == 3
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids


def test_no_messages_no_replies():
    assert LocalGrid(echo_app(), 1).send_and_receive(iter([])) == []


def test_an_error_of_the_app_is_raised_as_it_is():
    grid = LocalGrid(echo_app(), 2)
    with pytest.raises(ArithmeticError, match="node 2 is in trouble"):
        grid.send_and_receive([question(2, "query.trouble", n=0)])
    assert len(ask(grid, (1, 0))) == 1
