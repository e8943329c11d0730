"""Messages with junk in them: a device refuses them in words, and nothing leaves its store."""

from __future__ import annotations

from contextlib import suppress

import pytest
from flwr.app import ConfigRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepper import PARCEL, STATE, Stepper, Steps

from dccl_flower.checkpoint import to_bytes
from dccl_flower.codecs import FP32
from dccl_flower.device_store import sha256
from dccl_flower.flower.device_app import DeviceClient
from dccl_flower.flower.letters import Letter
from dccl_flower.flower.wire import ndarrays
from dccl_flower.method import Ask

ENGINE = {"server-round": 1, "exchange": 0, "keep-last": 1, "seed": 0, "run": "tests"}
FEW = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def message(devices, is_shared):
    ask = Ask(STATE, Steps(), {"beside": STATE}, {"mimic": PARCEL})
    content = Letter(ask, FP32, ENGINE).content(devices, is_shared, ["mimic"], {})
    return ndarrays(content["arrays"]), dict(content["config"])


SINGLE, SHARED = message([3], False), message([3, 1], True)
scalars = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.text(), st.binary()
)
lists = st.one_of(
    *(st.lists(each, max_size=3) for each in (st.integers(-3, 3), st.text(), st.binary()))
)
paths = st.sampled_from(["../../out", "/out", "..", "a/../../out", "\0", "~"])
junk = st.one_of(scalars, lists, paths, st.just(None))
blobs = st.one_of(st.binary(), st.just(to_bytes(STATE)[:-1]))


@pytest.mark.parametrize(("arrays", "config"), [SINGLE, SHARED], ids=["single", "shared"])
@FEW
@given(st.data())
def test_any_value_in_a_message_is_used_or_refused_in_words(tmp_path, arrays, config, data):
    client = DeviceClient(Stepper(), lambda device: [], tmp_path / "store")
    key = data.draw(st.sampled_from(sorted(config)))
    value = data.draw(junk)
    changed = {name: each for name, each in config.items() if name != key}
    if value is not None:  # else the key is missing
        changed[key] = ConfigRecord({key: value})[key]
    for take in (client.fit, lambda arrays, config: client.get_properties(config)):
        with suppress(ValueError):
            take(arrays, changed)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["store"])
    assert {path.name for path in tmp_path.glob("store/*")} <= {"blobs", "devices", "own"}


@FEW
@given(st.dictionaries(st.sampled_from([*SINGLE[1], "devices", "x-sha256"]), junk))
def test_a_message_of_junk_alone_is_refused(tmp_path, config):
    config = {name: value for name, value in config.items() if value is not None}
    client = DeviceClient(Stepper(), lambda device: [], tmp_path / "store")
    for take in (client.fit, client.again, client.evaluate):
        with pytest.raises(ValueError, match=r"."):
            take(SINGLE[0], config)
    assert list(tmp_path.iterdir()) == []


@FEW
@given(blobs)
def test_a_parcel_that_is_no_state_is_refused_though_its_hash_is_right(tmp_path, blob):
    arrays, config = SINGLE
    client = DeviceClient(Stepper(), lambda device: [], tmp_path / "store")
    brought = {"mimic": blob, "mimic-sha256": sha256(blob)}
    with pytest.raises(ValueError, match=r"^not safetensors: "):
        client.fit(arrays, {**config, **brought})
