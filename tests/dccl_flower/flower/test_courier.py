from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError
from local_grid import LocalGrid
from tiny import tiny_app

from dccl_flower.checkpoint import to_bytes
from dccl_flower.codecs import CODECS, FP64
from dccl_flower.device_store import Parcel
from dccl_flower.fleet.judge import FaultPolicy, Judge
from dccl_flower.flower.courier import Courier
from dccl_flower.flower.errand import WorkerLost
from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.wire import record, to_arrays
from dccl_flower.method import Ask, Numbers

STATE = {"w": torch.zeros(2)}
MIMIC = Parcel.of({"m": torch.arange(5.0)})


@dataclass(frozen=True)
class Turn:
    lr: float = 0.5


@pytest.fixture
def grid(tmp_path):
    return LocalGrid(tiny_app(tmp_path), 2)


def courier_of(grid, num_devices=4, codec="fp32", devices_per_node=1, **policy):
    ledger = Ledger()
    judge = Judge(FaultPolicy(**{"timeout": 60.0, **policy}))
    return Courier(grid, num_devices, ledger, CODECS[codec], judge, devices_per_node)


@pytest.fixture
def courier(grid):
    return courier_of(grid)


def letters(courier, devices, state=STATE, **ask):
    asked = Ask(state, Turn(), keep={"mimic": MIMIC}, sends="co", brings="co", **ask)
    return courier.letters(dict.fromkeys(devices, asked), (1, 0))


def send(courier, devices, kind="train", given=None, **ask):
    return courier.send(letters(courier, devices, **ask), kind, given)


def message_to(node):
    message = Message(RecordDict(), dst_node_id=node, message_type="train")
    message.metadata.__dict__["_message_id"] = "m"
    return message


def reply_of(device, state=STATE, **more):
    told = {"num-examples": 5, "device": device, "server-round": 1}
    metrics = MetricRecord({**told, **more})
    content = RecordDict({"arrays": to_arrays(state), "metrics": metrics})
    return Message(content, reply_to=message_to(1000))


def error_of(node, reason):
    reply = Message(Error(1, reason), reply_to=message_to(node))
    reply.metadata.__dict__["_src_node_id"] = node
    return reply


def asked_of(grid):
    queries = [m for m in grid.sent if m.metadata.message_type == "query.holds"]
    return {m.metadata.dst_node_id: m.content["config"]["devices"] for m in queries}


def ids_and_nodes(messages):
    return [(m.content["config"]["devices"], m.metadata.dst_node_id) for m in messages]


def test_one_query_a_node_asks_for_all_its_devices(courier, grid):
    send(courier, [0, 1, 2])
    assert len(grid.sent) == 4  # two to learn the partitions
    assert asked_of(grid) == {1000: [0, 2], 993: [1]}


def test_devices_are_asked_what_they_hold_until_they_have_answered(courier, grid):
    errand = send(courier, [0, 1, 2])
    courier.read(errand, [reply_of(d) for d in (0, 1, 2)])
    grid.sent.clear()
    send(courier, [1, 2, 3])
    assert asked_of(grid) == {993: [3]}
    grid.sent.clear()
    # Those of the last errand have not answered yet, and device 0 is still known to hold.
    messages = send(courier, [0, 1, 2, 3]).messages
    assert asked_of(grid) == {993: [1, 3], 1000: [2]}
    lacking = [m.content["config"]["device"] for m in messages if "mimic" in m.content["config"]]
    assert sorted(lacking) == [1, 2, 3]


def test_replies_come_back_in_the_order_of_device_ids(courier):
    replies = courier.read(send(courier, [0, 1, 2]), [reply_of(d) for d in (2, 0, 1)])
    assert [reply.devices for reply in replies] == [[0], [1], [2]]


def test_ids_are_not_left_in_the_metrics_that_are_averaged(courier):
    (reply,) = courier.read(send(courier, [0]), [reply_of(0)])
    (content,) = reply.contents
    assert list(content["metrics"]) == ["num-examples"]


@pytest.mark.parametrize(
    ("devices", "message"),
    [((0, 0), "device 0 answered twice"), ((0, 3), "device 3 answered without being asked")],
)
def test_a_device_that_was_not_asked_or_answers_twice_is_an_error(courier, devices, message):
    with pytest.raises(AggregationError, match=message):
        courier.read(send(courier, [0, 1]), [reply_of(d) for d in devices])


def test_a_missing_reply_is_an_error(courier):
    expected = (
        r"^round 1: 1 of 2 devices answered, rounds\.min_replies=1 asks for more; "
        r"silent: device 1 did not answer within 60 seconds$"
    )
    with pytest.raises(AggregationError, match=expected):
        courier.read(send(courier, [0, 1]), [reply_of(0)])


def test_no_reply_at_all_is_an_error_whatever_the_minimum(grid):
    courier = courier_of(grid, min_replies=0.0)
    with pytest.raises(AggregationError, match=r"0 of 1 devices .*; raised: device 0: no reason"):
        courier.read(send(courier, [0]), [error_of(1000, "")])


def test_the_line_that_names_the_cause_of_an_error_is_told(courier):
    reason = "<class 'ValueError'>:<'Traceback:\n  one line\nValueError: out of memory'>"
    replies = [reply_of(0), error_of(993, reason)]
    with pytest.raises(AggregationError, match=r"; raised: device 1: ValueError: out of memory$"):
        courier.read(send(courier, [0, 1]), replies)


def test_values_that_are_not_finite_name_the_device(courier):
    bad = {"w": torch.tensor([0.0, float("nan")])}
    with pytest.raises(AggregationError, match="device 1 replied with a value in 'w'"):
        courier.read(send(courier, [0, 1]), [reply_of(0), reply_of(1, bad)])


def test_a_reply_of_another_model_names_the_device(courier):
    with pytest.raises(AggregationError, match=r"device 0 replied .* expected float32 \(2,\)"):
        courier.read(send(courier, [0]), [reply_of(0, {"w": torch.zeros(3)})])


def test_a_reply_becomes_an_answer_with_its_sample_count(courier):
    state = {"w": torch.tensor([1.0, -2.0])}
    (reply,) = courier.read(send(courier, [0]), [reply_of(0, state)])
    assert torch.equal(reply.answer.state["w"], state["w"])
    assert (reply.answer.count, reply.answer.beside, reply.peak_rss_mb) == (5, {}, 0)


def test_class_counts_reach_the_answer_and_not_the_metrics_that_are_averaged(courier):
    counts = {"class-counts": [2, 0, 3], "peak-rss-mb": 7.5}
    errand = send(courier, [0], wants={"class-counts": Numbers(3)})
    (reply,) = courier.read(errand, [reply_of(0, **counts)])
    assert reply.answer.beside["class-counts"].tolist() == [2, 0, 3]
    assert reply.peak_rss_mb == 7.5
    (content,) = reply.contents
    assert list(content["metrics"]) == ["num-examples"]


def test_what_goes_beside_is_sent_to_every_device_and_counted_each_time(courier):
    correction = {"c": torch.arange(7.0)}
    blob = to_bytes(correction)
    for _ in range(2):
        messages = send(courier, [0, 1], beside={"correction": correction}).messages
        assert [m.content["config"]["beside.correction"] for m in messages] == [blob] * 2
    assert courier.ledger.totals["correction_down"] == 4 * len(blob)


def test_a_message_names_the_codec_and_what_to_hold(courier):
    (message,) = send(courier, [0]).messages
    config = message.content["config"]
    assert (config["lr"], config["codec"], config["mimic-sha256"]) == (0.5, "fp32", MIMIC.digest)


def test_the_callers_config_goes_along_but_cannot_set_what_the_strategy_sets(courier):
    (message,) = send(courier, [0], given={"note": 7}).messages
    assert message.content["config"]["note"] == 7
    for key in ("lr", "device", "server-round", "mimic"):
        with pytest.raises(ValueError, match=f"^train_config: '{key}' is set by the strategy"):
            send(courier, [0], given={"note": 7, key: 0.1})


def test_a_state_whose_arrays_are_known_is_not_encoded_again(courier):
    known = (STATE, to_arrays(STATE))
    asks = {0: Ask(STATE, Turn()), 1: Ask({"w": torch.zeros(2)}, Turn())}
    made = courier.letters(asks, (1, 0), known)
    assert made[0].arrays is known[1]
    assert made[1].arrays is not known[1]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2, [([0, 2], 1000), ([4], 1000), ([1, 3], 993)]),
        (3, [([0, 2, 4], 1000), ([1, 3], 993)]),
        (100, [([0, 2, 4], 1000), ([1, 3], 993)]),
    ],
)
def test_up_to_so_many_devices_of_a_node_share_a_message(grid, size, expected):
    messages = send(courier_of(grid, 5, devices_per_node=size), range(5)).messages
    assert ids_and_nodes(messages) == expected


def test_messages_that_train_nothing_are_never_shared(grid):
    courier = courier_of(grid, 5, devices_per_node=100)
    for kind in ("evaluate", "train.again"):
        messages = send(courier, range(5), kind).messages
        assert sorted(m.content["config"]["device"] for m in messages) == [0, 1, 2, 3, 4]


def test_devices_that_are_sent_something_else_do_not_share_a_message(grid):
    courier = courier_of(grid, 5, devices_per_node=100)
    narrow = {"w": torch.ones(1)}
    asked = letters(courier, [0, 1, 3]) | letters(courier, [2, 4], narrow)
    errand = courier.send(dict(sorted(asked.items())), "train")
    assert ids_and_nodes(errand.messages) == [([0], 1000), ([2, 4], 1000), ([1, 3], 993)]
    sizes = [m.content["arrays"]["0"].numpy().size for m in errand.messages]
    assert sizes == [2, 1, 2]


def test_a_blob_rides_once_in_a_shared_message_and_counts_for_each_that_lacks_it(grid):
    courier = courier_of(grid, 5, devices_per_node=100)
    courier.read(send(courier, [0]), [merged_reply([0])])
    send(courier, [0, 2, 4])
    size = len(MIMIC.blob())
    assert courier.ledger.totals["mimic_down"] == (1 + 2) * size


def test_the_bytes_of_a_shared_message_count_as_if_each_device_had_its_own(grid):
    alone, shared = (courier_of(grid, 5, devices_per_node=size) for size in (1, 100))
    alone.read(send(alone, [0, 2, 4]), [reply_of(d) for d in (0, 2, 4)])
    shared.read(send(shared, [0, 2, 4]), [merged_reply([0, 2, 4])])
    for kind in ("co_down", "co_up", "mimic_down"):
        assert shared.ledger.totals[kind] == alone.ledger.totals[kind] > 0


def merged_reply(devices):
    """Return what a worker sends for devices that trained for it one after the other."""
    each = {"num-examples-each": [5] * len(devices), "loss": [0.5] * len(devices)}
    told = {"num-examples": 5 * len(devices), "devices": devices, "server-round": 1}
    metrics = MetricRecord({**told, **each})
    state = {name: tensor.double() for name, tensor in STATE.items()}
    content = RecordDict({"arrays": record(FP64.encode(state)), "metrics": metrics})
    return Message(content, reply_to=message_to(1000))


def test_a_shared_reply_answers_for_all_its_devices(grid, caplog):
    courier = courier_of(grid, 5, devices_per_node=100)
    (reply,) = courier.read(send(courier, [0, 2, 4]), [merged_reply([0, 2, 4])])
    assert (reply.devices, reply.answer.count, len(reply.contents)) == ([0, 2, 4], 15, 3)
    for devices, message in (([0, 1], "device 1 answered without"), ([4, 2], "answered twice")):
        caplog.clear()
        replies = [merged_reply([0, 2, 4]), merged_reply(devices)]
        (reply,) = courier.read(send(courier, [0, 2, 4]), replies)
        assert reply.devices == [0, 2, 4]
        assert message in caplog.text
    with pytest.raises(AggregationError, match="2 of 3 devices answered"):
        courier.read(send(courier, [0, 2, 4]), [merged_reply([0, 2])])


def test_only_devices_of_a_node_that_lost_a_blob_are_asked_again(grid):
    courier = courier_of(grid, 4)
    errand = send(courier, [0, 1, 2, 3])
    late = {}

    def answer(messages, timeout):
        late.update({m.content["config"]["device"]: m for m in messages})
        return [reply_of(device) for device in late]

    grid.send_and_receive = answer
    replies = [reply_of(0), reply_of(1), error_of(993, "lost: device 3 does not hold blob 12ab'>")]
    assert len(courier.read(errand, [*replies, reply_of(2)])) == 4
    assert list(late) == [3]
    assert "mimic" in late[3].content["config"]


def test_what_goes_to_devices_that_do_not_answer_in_time_is_counted(courier):
    courier.read(send(courier, [0]), [reply_of(0)])
    totals, before = courier.ledger.totals, dict(courier.ledger.totals)
    courier.count_unanswered(letters(courier, [0, 1, 2]))
    # Device 0 holds the mimic already; nothing comes back of any of them.
    assert totals["co_down"] - before["co_down"] == 3 * to_arrays(STATE).count_bytes()
    assert totals["mimic_down"] - before["mimic_down"] == 2 * len(MIMIC.blob())
    assert (totals["co_up"], totals["other_up"]) == (before["co_up"], before["other_up"])


def test_a_bad_answer_is_judged_as_a_missing_one(grid):
    bad = {"w": torch.tensor([0.0, float("nan")])}
    tolerant = courier_of(grid, min_replies=0.5)
    replies = tolerant.read(send(tolerant, [0, 1]), [reply_of(0), reply_of(1, bad)])
    assert [reply.devices for reply in replies] == [[0]]
    strict = courier_of(grid)
    errand = send(strict, [0, 1])
    with pytest.raises(AggregationError, match=r"1 of 2 devices answered.*; not_finite: device 1"):
        strict.read(errand, [reply_of(0), reply_of(1, bad)])


def test_a_lost_worker_is_not_a_device_that_failed(courier):
    reason = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly.'>"
    errand = send(courier, [0])
    with pytest.raises(WorkerLost, match=r"worker of device 0 is gone.*\(ActorDiedError\)"):
        courier.read(errand, [error_of(1000, reason)])


def test_what_a_device_raises_in_a_worker_is_its_own(courier):
    reason = "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'KeyError: 3'>"
    errand = send(courier, [0])
    with pytest.raises(AggregationError, match="raised: device 0: KeyError: 3"):
        courier.read(errand, [error_of(1000, reason)])
