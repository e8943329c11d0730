"""A device's turn by codec, and several devices' turns in one message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from messages import decode, encode, head_config, kept_by, score_config, train_config
from tiny import device_loader, tiny_model

from dccl_flower import DcCclClient
from dccl_flower.checkpoint import to_bytes
from dccl_flower.codecs import CODECS, FP64
from dccl_flower.flower.device_app import MERGE_AFTER
from dccl_flower.learning.fusion import Copy, Fusion
from dccl_flower.models.frozen import exchanged_state

MIMIC = to_bytes(tiny_model(6).state_dict())
START = exchanged_state(tiny_model(3))
FUSIONS = {
    "average": Fusion(head="3"),
    "class-wise head": Fusion(True, head="3"),
    "pooled": Fusion(pooled_statistics=True, head="3"),
    "both": Fusion(True, True, head="3"),
}


def a_config(codec="fp32", device=0, steps=2, **more):
    return train_config(MIMIC, device, codec, recipe={"steps": steps, "momentum": 0.9}, **more)


def encode_update(codec, trained, received, residual):
    return CODECS[codec].encode_update(trained, received, residual)


def fit(store, state=START, **config):
    client = DcCclClient(tiny_model(4), tiny_model(5), device_loader, store)
    config = a_config(**config)
    arrays, count, metrics = client.fit(encode(config["codec"], state), config)
    assert metrics.pop("server-round") == config["server-round"]
    return arrays, count, metrics


def assert_same(left, right):
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def trained(store, state, **config):
    """Return what a device makes of a state, told in full precision."""
    return decode("fp32", fit(store, state, **config)[0], START)


def received(codec):
    return decode(codec, encode(codec, START), START)


def test_fp16_sends_the_trained_state_rounded_once(tmp_path):
    arrays, count, _ = fit(tmp_path / "0", codec="fp16")
    expected = encode("fp16", trained(tmp_path / "1", received("fp16")))
    assert count == 12
    assert [array.dtype for array in arrays] == ["float16"]
    np.testing.assert_array_equal(arrays[0], expected[0])


def test_int8_sends_the_change_and_keeps_what_rounding_lost(tmp_path):
    arrays, _, _ = fit(tmp_path / "0", codec="int8")
    before = received("int8")
    after = trained(tmp_path / "1", before)
    expected, residual = encode_update("int8", after, before, {})
    for array, wanted in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)
    kept = kept_by(tmp_path / "0", 0, "residual")
    assert_same({name: kept[name] for name in residual}, residual)
    assert kept["3.weight"].abs().max() > 0
    assert set(kept) == {"0.weight", "3.weight"}


def test_what_was_lost_is_added_to_the_next_update_of_the_same_device(tmp_path):
    fit(tmp_path / "0", codec="int8")
    kept = kept_by(tmp_path / "0", 0, "residual")
    arrays, _, _ = fit(tmp_path / "0", codec="int8", server_round=2)
    before = received("int8")
    after = trained(tmp_path / "1", before, server_round=2)
    expected, _ = encode_update("int8", after, before, kept)
    np.testing.assert_array_equal(arrays[0], expected[0])
    assert not np.array_equal(arrays[0], encode_update("int8", after, before, {})[0][0])


def test_a_residual_is_not_that_of_another_device(tmp_path):
    alone, _, _ = fit(tmp_path / "0", codec="int8", device=1)
    fit(tmp_path / "1", codec="int8", device=0)
    after_another, _, _ = fit(tmp_path / "1", codec="int8", device=1)
    np.testing.assert_array_equal(alone[0], after_another[0])


@pytest.mark.parametrize("codec", ["fp32", "fp16"])
def test_other_codecs_keep_nothing(tmp_path, codec):
    fit(tmp_path, codec=codec)
    assert kept_by(tmp_path, 0, "residual") is None


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_scores_and_head_gradients_are_of_the_state_that_arrived(tmp_path, codec):
    client = DcCclClient(tiny_model(4), tiny_model(5), device_loader, tmp_path)
    sent, arrived = encode(codec, START), encode("fp32", received(codec))
    coarse, exact = (score_config(MIMIC, 0, each) for each in (codec, "fp32"))
    assert client.evaluate(sent, coarse) == client.evaluate(arrived, exact)
    coarse, exact = (head_config(MIMIC, 0, each) for each in (codec, "fp32"))
    (gradient,), count, _ = client.again(sent, coarse)
    (expected,), expected_count, _ = client.again(arrived, exact)
    assert (gradient.dtype, count) == ("float32", expected_count)
    np.testing.assert_array_equal(gradient, expected)


def alone(store, codec, device, **config):
    """Return the copy that a server reads of one device, and its metrics."""
    arrays, count, metrics = fit(store, codec=codec, device=device, **config)
    counts = metrics.pop("class-counts", None)
    state = CODECS[codec].apply_update(arrays, received(codec))
    return Copy(state, count, None if counts is None else torch.tensor(counts)), metrics


@pytest.mark.parametrize(
    ("codec", "fusion"),
    [*(("fp32", fusion) for fusion in FUSIONS), ("fp16", "average"), ("int8", "average")],
)
def test_devices_of_one_message_are_fused_as_they_would_be_one_by_one(tmp_path, codec, fusion):
    # More than are merged at a time, and not in the order of their ids.
    devices = list(range(MERGE_AFTER + 2, -1, -1))
    rule = FUSIONS[fusion]
    options = {"fusion": rule, "tell_class_counts": True, "keep_momentum": True, "steps": 1}
    arrays, count, metrics = fit(tmp_path / "0", codec=codec, device=devices, **options)
    copies, told = zip(
        *(alone(tmp_path / "1", codec, device, **options) for device in devices), strict=True
    )
    exact = [Copy(as_double(copy.state), copy.count, copy.class_counts) for copy in copies]
    torch.testing.assert_close(
        FP64.decode(arrays, START), rule(None, exact, 0.0), rtol=0, atol=1e-12
    )
    assert count == sum(copy.count for copy in copies)
    assert metrics["num-examples-each"] == [copy.count for copy in copies]
    for name in ("loss", "accuracy"):
        assert metrics[name] == [each[name] for each in told]
    assert metrics["class-counts"] == pytest.approx(sum(c.class_counts for c in copies).tolist())
    assert len(metrics["peak-rss-mb"]) == len(devices)


def as_double(state):
    return {name: tensor.double() for name, tensor in state.items()}


def test_what_each_device_of_a_message_keeps_is_its_own(tmp_path):
    options = {"codec": "int8", "keep_momentum": True}
    fit(tmp_path / "0", device=[2, 0], **options)
    for device in (0, 2):
        fit(tmp_path / "1", device=device, **options)
        for name in ("residual", "momentum"):
            together, apart = (kept_by(tmp_path / n, device, name) for n in ("0", "1"))
            assert_same(together, apart)
    assert kept_by(tmp_path / "0", 1, "momentum") is None


def test_one_device_in_a_list_is_that_device_to_the_bit(tmp_path):
    arrays, count, metrics = fit(tmp_path / "0", device=[2])
    copy, told = alone(tmp_path / "1", "fp32", 2)
    assert_same(FP64.decode(arrays, START), as_double(copy.state))
    assert (count, metrics["loss"]) == (copy.count, [told["loss"]])
    assert "class-counts" not in metrics


def test_one_of_several_devices_that_lacks_the_control_fails_the_message_before_any_turn(tmp_path):
    client = DcCclClient(tiny_model(4), tiny_model(5), device_loader, tmp_path)
    config = a_config(device=[0], keep_momentum=True)
    client.fit(encode("fp32", START), config)
    del config["mimic"]
    with pytest.raises(ValueError, match=r"^device 1 does not hold blob"):
        client.fit(encode("fp32", START), {**config, "devices": [0, 1], "run": "another"})
    assert not (tmp_path / "own" / "0" / "another").exists()
