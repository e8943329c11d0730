from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from flwr.app import MetricRecord, RecordDict

from dccl_flower.checkpoint import to_bytes
from dccl_flower.codecs import CODECS, FP64
from dccl_flower.device_store import Parcel
from dccl_flower.flower import wire
from dccl_flower.flower.letters import Letter, speakers
from dccl_flower.flower.wire import ndarrays, record
from dccl_flower.method import Ask, Numbers

# In steps of 1/127 a half is 63.5, which rounds to 64: int8 sends more than a half.
STATE = {"w": torch.tensor([[1.0, 0.5], [-0.25, 0.0]]), "b": torch.tensor([0.1, -0.2])}
THIRD = {"w": torch.full((2, 2), 1 / 3), "b": torch.full((2,), 1 / 3)}


@dataclass(frozen=True)
class Turn:
    steps: int = 3


def letter(state, codec="fp32", **ask):
    return Letter(Ask(state, Turn(), **ask), CODECS[codec], {"server-round": 4, "seed": 1})


def to_arrays(state, codec="fp32"):
    return wire.to_arrays(state, CODECS[codec])


def to_state(arrays, like, codec="fp32"):
    return wire.to_state(arrays, like, CODECS[codec])


def encode_update(codec, *states):
    return CODECS[codec].encode_update(*states)


def exactly(state):
    return {name: tensor.double() for name, tensor in state.items()}


def one(arrays, **metrics):
    """Return what a device sends that has a message of its own."""
    values = {"num-examples": 5, "device": 3, "server-round": 4, **metrics}
    return RecordDict({"arrays": arrays, "metrics": MetricRecord(values)})


def several(state, devices=(3, 1), **metrics):
    """Return what a worker sends for devices that share a message."""
    each = {"devices": list(devices), "num-examples-each": [5, 7]}
    values = {"num-examples": 12, "server-round": 4, **each, **metrics}
    return RecordDict({"arrays": record(FP64.encode(state)), "metrics": MetricRecord(values)})


def metrics_of(reply):
    return [dict(content["metrics"]) for content in reply.contents]


def test_a_reply_speaks_for_its_device_or_devices():
    assert speakers(one(to_arrays(STATE))) == [3]
    assert speakers(several(STATE, (4, 2, 9))) == [4, 2, 9]


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_sent_is_the_state_by_the_codec(codec):
    sent = letter(STATE, codec).arrays
    assert [a.tolist() for a in ndarrays(sent)] == [
        a.tolist() for a in ndarrays(to_arrays(STATE, codec))
    ]
    assert [array.dtype for array in ndarrays(sent)] == {
        "fp32": ["float32"],
        "fp16": ["float16"],
        "int8": ["int8", "float32", "float32"],
        "named": ["float32", "float32"],
    }[codec]


def test_fp32_arrives_to_the_bit():
    reply = letter(STATE).read(one(to_arrays(THIRD)))
    assert (reply.devices, reply.answer.count, reply.answer.beside) == ([3], 5, {})
    assert all(torch.equal(reply.answer.state[name], THIRD[name]) for name in STATE)
    assert reply.merged_bytes is None


def test_fp16_arrives_rounded():
    reply = letter(STATE, "fp16").read(one(to_arrays(THIRD, "fp16")))
    assert reply.answer.state["w"].dtype == torch.float32
    assert reply.answer.state["w"].unique().tolist() == [0.333251953125]


def test_a_change_in_int8_is_added_to_the_state_before_it_was_rounded():
    reader = letter(STATE, "int8")
    received = to_state(reader.arrays, STATE, "int8")
    assert received["w"][0, 1].item() == pytest.approx(64 / 127)
    trained = {"w": received["w"] + 1.0, "b": THIRD["b"]}
    update, _ = encode_update("int8", trained, received, {})
    state = reader.read(one(record(update))).answer.state
    torch.testing.assert_close(state["w"], STATE["w"] + 1.0)
    assert torch.equal(state["b"], THIRD["b"])


def test_the_devices_peak_and_classes_leave_the_metrics_that_are_averaged():
    more = {"loss": 0.5, "peak-rss-mb": 7.5, "class-counts": [2, 0, 3]}
    reply = letter(STATE, wants={"class-counts": Numbers(3)}).read(one(to_arrays(STATE), **more))
    assert reply.peak_rss_mb == 7.5
    assert reply.answer.beside["class-counts"].tolist() == [2, 0, 3]
    assert metrics_of(reply) == [{"num-examples": 5, "loss": 0.5}]


def test_a_client_that_tells_no_peak_counts_as_none():
    assert letter(STATE).read(one(to_arrays(STATE))).peak_rss_mb == 0
    assert letter(STATE).read(several(STATE)).peak_rss_mb == 0


def test_a_merged_copy_stays_in_double_precision():
    third = {name: torch.full_like(t, 1 / 3, dtype=torch.float64) for name, t in STATE.items()}
    reply = letter(STATE).read(several(third))
    assert (reply.devices, reply.answer.count, reply.answer.beside) == ([3, 1], 12, {})
    for name, tensor in third.items():
        assert reply.answer.state[name].dtype == torch.float64
        assert torch.equal(reply.answer.state[name], tensor)


def test_lists_of_metrics_become_one_record_a_device_in_their_order():
    more = {"loss": [0.5, 0.25], "peak-rss-mb": [7.5, 9.0], "class-counts": [4.0, 3.0, 5.0]}
    reply = letter(STATE, wants={"class-counts": Numbers(3)}).read(several(STATE, **more))
    assert metrics_of(reply) == [
        {"num-examples": 5, "loss": 0.5},
        {"num-examples": 7, "loss": 0.25},
    ]
    assert reply.peak_rss_mb == 9.0
    assert reply.answer.beside["class-counts"].tolist() == [4.0, 3.0, 5.0]


@pytest.mark.parametrize("codec", CODECS)
def test_a_merged_reply_counts_as_many_bytes_as_its_devices_would_have_sent(codec):
    reader = letter(STATE, codec)
    update, _ = encode_update(codec, THIRD, STATE, {})
    reply = reader.read(several(exactly(STATE)))
    assert reply.merged_bytes == 2 * record(update).count_bytes()


@pytest.mark.parametrize("codec", CODECS)
def test_a_merged_reply_reads_as_the_mean_of_what_its_devices_would_have_sent(codec):
    reader = letter(STATE, codec)
    received = to_state(reader.arrays, STATE, codec)
    copies, merged = [], {name: torch.zeros(t.shape).double() for name, t in STATE.items()}
    for change in (0.3, -0.11):
        trained = {name: tensor + change for name, tensor in received.items()}
        update, _ = encode_update(codec, trained, received, {})
        copies.append(reader.read(one(record(update))).answer.state)
        # A worker knows what it received, and not what was lost before.
        seen = letter(received, codec)
        seen_update, _ = encode_update(codec, trained, received, {})
        for name, tensor in seen.read(one(record(seen_update))).answer.state.items():
            merged[name] += tensor.double() / 2
    read = reader.read(several(merged)).answer.state
    for name in STATE:
        mean = (copies[0][name].double() + copies[1][name].double()) / 2
        torch.testing.assert_close(read[name], mean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_names_who_sent_it(bad):
    odd = {**STATE, "b": torch.tensor([0.0, bad])}
    with pytest.raises(ValueError, match=r"^device 3 replied with a value in 'b' that is not fin"):
        letter(STATE).read(one(to_arrays(odd)))
    with pytest.raises(ValueError, match=r"^devices 3, 1: one replied with a value in 'b'"):
        letter(STATE).read(several(odd))


def test_arrays_that_do_not_fit_name_who_sent_them():
    other = {"w": torch.zeros(5)}
    expected = r"what does not fit: fp32: got an array of float32 \(5,\), expected float32 \(6,\)$"
    with pytest.raises(ValueError, match=f"^device 3 replied with {expected}"):
        letter(STATE).read(one(to_arrays(other)))
    with pytest.raises(ValueError, match=r"^devices 3, 1: one replied with what does not"):
        letter(STATE).read(several(other))


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_a_reply_by_another_codec_is_refused(codec):
    with pytest.raises(ValueError, match=f"^device 3 replied with what does not fit: {codec}: got"):
        letter(STATE, codec).read(one(to_arrays(STATE)))


def test_what_was_read_does_not_change_with_the_reply_nor_with_the_state_sent():
    base, trained = ({n: t.clone() for n, t in state.items()} for state in (STATE, THIRD))
    reader = letter(base)
    reply = reader.read(one(to_arrays(trained)))
    for tensor in (*base.values(), *trained.values()):
        tensor.zero_()
    assert all(torch.equal(reply.answer.state[name], THIRD[name]) for name in STATE)
    assert all(torch.equal(t, STATE[n]) for n, t in to_state(reader.arrays, STATE).items())


def test_a_message_says_what_is_asked_and_who_is_asked():
    parcel = Parcel.of({"m": torch.ones(2)})
    ask = {"keep": {"mimic": parcel}, "beside": {"correction": THIRD}}
    one_of = letter(STATE, **ask)
    content = one_of.content([7], False, [], {"note": 5})
    config = dict(content["config"])
    assert (config["turn"], config["steps"], config["note"], config["device"]) == ("Turn", 3, 5, 7)
    assert (config["codec"], config["is-update"], config["server-round"]) == ("fp32", True, 4)
    assert config["mimic-sha256"] == parcel.digest
    assert config["beside.correction"] == to_bytes(THIRD)
    assert "mimic" not in config
    shared = one_of.content([7, 9], True, ["mimic"], {})["config"]
    assert (shared["devices"], shared["mimic"]) == ([7, 9], parcel.blob())
    for key in ("device", "devices", "mimic", "steps", "seed", "turn"):
        with pytest.raises(ValueError, match=f"^train_config: '{key}' is set by the strategy"):
            one_of.content([7], False, [], {key: 1})


def test_a_reply_of_another_round_is_refused():
    with pytest.raises(ValueError, match=r"^device 3 replied to round 3, in round 4$"):
        letter(STATE).read(one(to_arrays(STATE), **{"server-round": 3}))
    content = one(to_arrays(STATE))
    del content["metrics"]["server-round"]
    with pytest.raises(ValueError, match=r"^device 3 replied to round None, in round 4$"):
        letter(STATE).read(content)


@pytest.mark.parametrize("count", [0, -1, 2.5, 10**15, 2**63 - 1])
def test_an_impossible_number_of_samples_names_who_told_it(count):
    with pytest.raises(ValueError, match=f"^device 3 replied with num-examples={count}: must be a"):
        letter(STATE).read(one(to_arrays(STATE), **{"num-examples": count}))


def test_what_comes_back_of_another_kind_is_read_exactly_whatever_the_codec():
    other = {"g": torch.tensor([1 / 3, -2.0])}
    reply = letter(STATE, "int8", like=other).read(one(to_arrays(other)))
    assert torch.equal(reply.answer.state["g"], other["g"])


@pytest.mark.parametrize("codec", CODECS)
def test_a_merged_copy_of_another_kind_is_read_as_it_is_and_counts_as_what_its_devices_sent(codec):
    other = {"g": torch.tensor([1 / 3, -2.0])}
    reply = letter(STATE, codec, like=other).read(several(exactly(other)))
    assert torch.equal(reply.answer.state["g"], other["g"].double())
    assert reply.merged_bytes == 2 * to_arrays(other).count_bytes()


def test_a_merged_answer_may_bring_no_state():
    reply = letter(STATE, "int8", like={}).read(several({}))
    assert (reply.devices, reply.answer.count, reply.answer.state) == ([3, 1], 12, {})


def test_lists_of_another_length_than_the_devices_are_refused():
    with pytest.raises(ValueError, match="replied with 1 values of 'loss'"):
        letter(STATE).read(several(STATE, loss=[0.5]))
