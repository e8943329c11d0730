from __future__ import annotations

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError
from local_grid import LocalGrid
from tiny import tiny_app, tiny_cloud

from dccl_flower.flower.courier import Courier
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.nodes import NodeDirectory
from dccl_flower.flower.wire import to_arrays

STATE = {"w": torch.zeros(2)}


@pytest.fixture
def grid(tmp_path):
    return LocalGrid(tiny_app(tmp_path), 2)


@pytest.fixture
def courier(grid):
    blobs = {"mimic": tiny_cloud().control_blob()}
    return Courier(
        grid, NodeDirectory(grid, 4, Ledger()), Ledger(), blobs, min_replies=1.0, timeout=60
    )


def reply_of(grid, device, state=STATE, **more):
    message = Message(
        RecordDict(), dst_node_id=next(iter(grid.get_node_ids())), message_type="train"
    )
    message.metadata.__dict__["_message_id"] = "m"
    metrics = MetricRecord({"num-examples": 5, "device": device, **more})
    content = RecordDict({"arrays": to_arrays(state), "metrics": metrics})
    return Message(content, reply_to=message)


def test_one_query_a_node_asks_for_all_its_devices(courier, grid):
    courier.messages([0, 1, 2], to_arrays(STATE), {}, "train")
    queries = [m for m in grid.sent if m.metadata.message_type == "query.holds"]
    asked = {m.metadata.dst_node_id: m.content["config"]["devices"] for m in queries}
    assert asked == {1000: [0, 2], 993: [1]}


def test_replies_come_back_in_the_order_of_device_ids(courier, grid):
    replies = courier.read([reply_of(grid, d) for d in (2, 0, 1)], [0, 1, 2], STATE)
    assert [reply.device for reply in replies] == [0, 1, 2]


def test_ids_are_not_left_in_the_metrics_that_are_averaged(courier, grid):
    (reply,) = courier.read([reply_of(grid, 0)], [0], STATE)
    assert list(reply.content["metrics"]) == ["num-examples"]


@pytest.mark.parametrize("devices", [(0, 0), (0, 3)])
def test_a_device_that_was_not_asked_or_answers_twice_is_an_error(courier, grid, devices):
    with pytest.raises(AggregationError, match="without being asked"):
        courier.read([reply_of(grid, d) for d in devices], [0, 1], STATE)


def test_a_missing_reply_is_an_error(courier, grid):
    with pytest.raises(AggregationError, match="1 of 2 devices answered"):
        courier.read([reply_of(grid, 0)], [0, 1], STATE)


def test_values_that_are_not_finite_name_the_device(courier, grid):
    bad = {"w": torch.tensor([0.0, float("nan")])}
    with pytest.raises(AggregationError, match="device 1 replied with a value in 'w'"):
        courier.read([reply_of(grid, 0), reply_of(grid, 1, bad)], [0, 1], STATE)


def test_a_reply_becomes_a_copy_with_its_sample_count(courier, grid):
    state = {"w": torch.tensor([1.0, -2.0])}
    (reply,) = courier.read([reply_of(grid, 0, state)], [0], STATE)
    assert torch.equal(reply.copy.state["w"], state["w"])
    assert (reply.copy.count, reply.copy.class_counts, reply.peak_rss_mb) == (5, None, 0)


def test_class_counts_reach_the_copy_and_not_the_metrics_that_are_averaged(courier, grid):
    counts = {"class-counts": [2, 0, 3], "peak-rss-mb": 7.5}
    (reply,) = courier.read([reply_of(grid, 0, **counts)], [0], STATE)
    assert reply.copy.class_counts.tolist() == [2, 0, 3]
    assert reply.peak_rss_mb == 7.5
    assert list(reply.content["metrics"]) == ["num-examples"]


def test_a_correction_is_sent_to_every_device_and_counted_each_time(courier, grid):
    ledger = courier._ledger
    for _ in range(2):
        messages = courier.messages([0, 1], to_arrays(STATE), {"correction": b"c" * 50}, "train")
        assert [m.content["config"]["correction"] for m in messages] == [b"c" * 50] * 2
    assert ledger.totals["correction_down"] == 4 * 50
