"""Stock Flower of the benchmark, without its runtime: what is asked of nodes, what they answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower.config_loading import dump_conf, load_conf
from dccl_flower.image_config import RoundsConf
from dccl_flower.simulations.app.events import EventWriter
from dccl_flower.simulations.experiment import cached_experiment
from dccl_flower.simulations.scale.flower import (
    FIRST_TURN,
    PlainClient,
    RoundEvents,
    client_app,
    client_fn,
    get_weights,
    set_weights,
    strategy,
)
from dccl_flower.simulations.scale.workload import co_submodel

SMALL = ["devices.count=4", "devices.per_round=2", "rounds.local_steps=3", "rounds.lr=0.1"]


class Counting(nn.Linear):
    """A linear layer that keeps how large its batches were."""

    def __init__(self):
        super().__init__(2, 3)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return super().forward(x)


@pytest.fixture
def run_config(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text(dump_conf(load_conf("digits", [*SMALL, f"devices.store={tmp_path}"])))
    return {"conf": str(path), "output": str(tmp_path)}


def test_a_client_takes_its_steps_epoch_after_epoch_and_gives_all_arrays_back():
    net = Counting()
    samples = TensorDataset(torch.randn(6, 2), torch.arange(6) % 3)
    client = PlainClient(net, DataLoader(samples, 2), RoundsConf(local_steps=4, lr=0.1))
    start = [np.ones((3, 2), np.float32), np.zeros(3, np.float32)]
    arrays, count, metrics = client.fit(start, {})
    assert net.sizes == [2, 2, 2, 2]
    assert (count, metrics) == (6, {})
    assert [array.shape for array in arrays] == [(3, 2), (3,)]
    assert not np.array_equal(arrays[0], start[0])


def test_weights_travel_as_a_list_of_all_arrays():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    arrays = [array + 1 for array in get_weights(net)]
    set_weights(net, arrays)
    for array, tensor in zip(arrays, net.state_dict().values(), strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())
    assert len(arrays) == 7


def test_flowers_own_strategy_and_client_understand_each_other(run_config):
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    experiment = cached_experiment(run_config["conf"], "")
    fed_avg = strategy(experiment.conf)
    assert (fed_avg.fraction_train, fed_avg.min_available_nodes) == (0.5, 4)
    arrays = ArrayRecord(get_weights(co_submodel(experiment)))
    content = {fed_avg.arrayrecord_key: arrays, fed_avg.configrecord_key: ConfigRecord({"r": 1})}
    replies = []
    for node in (1, 2):
        message = Message(RecordDict(content), dst_node_id=node, message_type="train")
        message.metadata.__dict__["_message_id"] = f"m{node}"
        context = Context(1, node, {"partition-id": node - 1}, RecordDict(), run_config)
        replies.append(client_app(message, context))
    assert not any(reply.has_error() for reply in replies)
    averaged, metrics = fed_avg.aggregate_train(1, replies)
    assert "num_examples" not in (metrics or {})
    for before, after in zip(arrays.values(), averaged.values(), strict=True):
        assert before.numpy().shape == after.numpy().shape
    changed = [
        not np.array_equal(before.numpy(), after.numpy())
        for before, after in zip(arrays.values(), averaged.values(), strict=True)
    ]
    assert sum(changed) > len(changed) / 2


def test_the_first_turn_leaves_its_time_and_later_ones_leave_that_alone(run_config, tmp_path):
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), run_config)
    client_fn(context)
    written = (tmp_path / FIRST_TURN).stat().st_mtime_ns
    client_fn(context)
    assert (tmp_path / FIRST_TURN).stat().st_mtime_ns == written


def test_each_round_but_the_start_is_an_event_with_its_bytes(tmp_path):
    conf = load_conf("digits", [*SMALL, "rounds.count=2"])
    hook = RoundEvents(EventWriter(tmp_path), conf)
    arrays = ArrayRecord([np.zeros(1000, np.float32)])
    assert [hook(number, arrays) for number in (0, 1, 2)] == [None, None, None]
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [(e["round"], e["total"], e["turns"]) for e in events] == [(1, 2, 2), (2, 2, 2)]
    assert events[0]["bytes_down"] == events[0]["bytes_up"] == 2 * arrays.count_bytes()
    assert events[0]["bytes_down"] >= 2 * 4000
