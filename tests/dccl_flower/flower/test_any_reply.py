"""Replies with junk in them: the round goes on without or ends in one line, and nothing else."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_grid import LocalGrid
from stepper import PARCEL, STATE, Stepper, Steps

from dccl_flower.codecs import CODECS
from dccl_flower.fleet.judge import FaultPolicy, Judge
from dccl_flower.flower.courier import Courier
from dccl_flower.flower.device_app import DeviceClient
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.nodes import FederationError, meet_nodes
from dccl_flower.flower.numpy_client_app import numpy_client_app
from dccl_flower.method import Ask

MANY = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.integers(0, 3)
VALUES = NUMBERS | st.lists(st.integers(-2, 5), max_size=3) | st.lists(st.floats(), max_size=3)
TOLD = ["device", "devices", "num-examples", "server-round", "peak-rss-mb", "renewed", "counts"]
METRICS = st.dictionaries(st.sampled_from(TOLD) | st.text(max_size=3), VALUES, max_size=4)
ARRAYS = st.builds(
    Array,
    dtype=st.sampled_from(["float32", "int64", "object", "no dtype"]),
    shape=st.lists(st.integers(-1, 10**13), max_size=3).map(tuple),
    stype=st.sampled_from(["numpy.ndarray", "pickle"]),
    data=st.binary(max_size=80)
    | st.binary(max_size=20).map(lambda end: b"\x93NUMPY\x01\x00" + end),
)
HOLDINGS = st.dictionaries(
    st.sampled_from(["holds-mimic", "x"]), NUMBERS | st.lists(st.booleans(), max_size=3)
)
RECORDS = {
    "metrics": METRICS.map(MetricRecord),
    "arrays": st.dictionaries(st.sampled_from("01a"), ARRAYS, max_size=2).map(ArrayRecord),
    "config": HOLDINGS.map(ConfigRecord),
}
ERRORS = st.builds(Error, code=st.integers(0, 500), reason=st.none() | st.text(max_size=60))


class Junk(LocalGrid):
    """Puts junk drawn by hypothesis into some replies, or an error in their place."""

    def __init__(self, app, num_nodes, data, *kinds):
        super().__init__(app, num_nodes)
        self.data, self.kinds = data, kinds

    def answer(self, message):
        reply, draw = super().answer(message), self.data.draw
        if message.metadata.message_type not in self.kinds or draw(st.booleans()):
            return reply
        if draw(st.booleans()):
            return Message(draw(ERRORS), reply_to=message)
        content = RecordDict(dict(reply.content))
        for name in draw(st.lists(st.sampled_from(sorted(RECORDS)), unique=True)):
            if draw(st.booleans()):
                content.pop(name, None)
            elif name == "metrics" and name in content and draw(st.booleans()):
                content[name] = MetricRecord({**content[name], **draw(METRICS)})
            else:
                content[draw(st.sampled_from([name, f"other {name}"]))] = draw(RECORDS[name])
        if not content:
            content["other"] = ConfigRecord({})
        return Message(content, reply_to=message)


@pytest.fixture
def app(tmp_path):
    def load(device):
        raise AssertionError("no data are asked for")

    return numpy_client_app(lambda context: DeviceClient(Stepper(), load, str(tmp_path)))


def outcome(call, refusal):
    """Return what a call returns, or the line by which it is refused."""
    try:
        return call(), ""
    except refusal as error:
        line = str(error)
    assert line.splitlines() == [line]
    return None, line


@MANY
@given(st.data())
def test_a_round_goes_on_without_or_ends_in_one_line(app, data):
    size, codec = (
        data.draw(st.sampled_from([1, 2])),
        CODECS[data.draw(st.sampled_from(["fp32", "int8"]))],
    )
    least = data.draw(st.sampled_from([0.25, 1.0]))
    policy = FaultPolicy(
        least, 60, data.draw(st.sampled_from(["skip_device", "ask_again", "stop"]))
    )
    grid = Junk(app, 2, data, "query.holds", "train", "evaluate")
    common = {"seed": 0, "run": "tests", "keep-last": 1}
    courier = Courier(grid, 4, Ledger(), codec, Judge(policy), size, common=common)
    kind = data.draw(st.sampled_from(["train", "train.again", "evaluate"]))
    letters = courier.letters(
        dict.fromkeys(range(4), Ask(STATE, Steps(), keep={"mimic": PARCEL})), (1, 0)
    )
    replies, refused = outcome(lambda: courier.ask(letters, kind), AggregationError)
    if refused:
        assert refused.startswith("round 1: ")
        return
    devices = [device for reply in replies for device in reply.devices]
    assert len(devices) == len(set(devices)) >= least * 4
    for reply in replies:
        assert all(torch.isfinite(tensor).all() for tensor in reply.answer.state.values())
        assert all(1 <= count < 2**31 for count in reply.counts.values())


@MANY
@given(st.data())
def test_nodes_are_met_or_refused_in_words(app, data):
    grid = Junk(app, 2, data, "query.node")
    met, refused = outcome(lambda: meet_nodes(grid, 4, Ledger(), 2), FederationError)
    assert refused or sorted(met.nodes) == sorted(grid.get_node_ids())
