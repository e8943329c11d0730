from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.client import NumPyClient
from local_grid import LocalGrid

from dccl_flower.flower.numpy_client_app import numpy_client_app


class Doubler(NumPyClient):
    """A client of somebody else's, which knows nothing of DC-CCL."""

    def fit(self, parameters, config):
        return [2 * p for p in parameters], 7, {"loss": np.float32(0.5), "steps": config["steps"]}

    def evaluate(self, parameters, config):
        return float(sum(p.sum() for p in parameters)), 4, {"accuracy": 0.25}


class Talker(NumPyClient):
    """A client that gives one metric of the caller's choice."""

    def __init__(self, metric):
        self.metric = metric

    def fit(self, parameters, config):
        return parameters, 1, {"note": self.metric}


def ask(client_fn, kind, config, num_nodes=1):
    grid = LocalGrid(numpy_client_app(client_fn), num_nodes)
    arrays = ArrayRecord({"w": Array(np.array([1.0, 2.0])), "b": Array(np.array([3.0]))})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord(config)})
    return grid.send_and_receive([Message(content, dst_node_id=1000, message_type=kind)])[0].content


@pytest.mark.parametrize(
    "client_fn", [lambda context: Doubler(), lambda context: Doubler().to_client()]
)
def test_fit_keeps_the_keys_and_returns_one_metric_record(client_fn):
    reply = ask(client_fn, "train", {"steps": 3, "device": 5})
    assert list(reply["arrays"]) == ["w", "b"]
    np.testing.assert_array_equal(reply["arrays"]["w"].numpy(), [2.0, 4.0])
    assert dict(reply["metrics"]) == {"num-examples": 7, "loss": 0.5, "steps": 3, "device": 5}


def test_without_a_device_in_the_config_none_is_echoed():
    assert "device" not in ask(lambda context: Doubler(), "train", {"steps": 3})["metrics"]


def test_evaluate_returns_loss_count_and_metrics():
    reply = ask(lambda context: Doubler(), "evaluate", {"steps": 3})
    assert dict(reply["metrics"]) == {"loss": 6.0, "num-examples": 4, "accuracy": 0.25}


def test_a_node_tells_its_partition():
    metrics = ask(lambda context: Doubler(), "query.node", {"ask": "x"}, num_nodes=3)["metrics"]
    assert dict(metrics) == {"partition-id": 0, "num-partitions": 3}


def test_a_metric_that_is_no_number_is_refused_by_name():
    with pytest.raises(TypeError, match="'note' is a str"):
        ask(lambda context: Talker("text"), "train", {"steps": 1})


def test_a_list_of_numbers_passes_with_its_kinds_of_numbers():
    for given, kind in (([3, np.int64(4)], int), ([0.5, np.float32(0.25)], float)):
        note = ask(lambda context, given=given: Talker(given), "train", {"steps": 1})["metrics"]
        assert note["note"] == given
        assert [type(value) for value in note["note"]] == [kind, kind]


@pytest.mark.parametrize("metric", [[1, "text"], [[1, 2]], [1, None]])
def test_a_list_with_anything_but_numbers_is_refused_by_name(metric):
    kind = type(metric[-1]).__name__
    with pytest.raises(TypeError, match=f"'note' is a {kind}; metrics must be numbers"):
        ask(lambda context: Talker(metric), "train", {"steps": 1})


class Sizer(NumPyClient):
    """A client that answers with other arrays than it received."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def fit(self, parameters, config):
        return [np.zeros(size) for size in self.sizes], 1, {}

    def again(self, parameters, config):
        return [np.ones(size) for size in self.sizes], 4, {}


def test_the_devices_of_a_message_are_echoed_as_they_were_named():
    metrics = ask(lambda context: Sizer(2, 1), "train", {"devices": [4, 2, 9]})["metrics"]
    assert metrics["devices"] == [4, 2, 9]
    assert "device" not in metrics


@pytest.mark.parametrize(
    ("sizes", "keys"), [((5, 5), ["w", "b"]), ((5,), ["0"]), ((1, 2, 3), ["0", "1", "2"])]
)
def test_arrays_go_by_the_keys_received_where_they_are_as_many(sizes, keys):
    for kind in ("train", "train.again"):
        reply = ask(lambda context: Sizer(*sizes), kind, {"device": 0})
        assert list(reply["arrays"]) == keys
        assert [len(array.numpy()) for array in reply["arrays"].values()] == list(sizes)
