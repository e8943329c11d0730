from __future__ import annotations

import errno
import hashlib
import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dccl_flower.standing import Checkpoints, Standing, last_round


def standing(number, value=1.0):
    state = {"b": torch.full((2,), value), "a": torch.tensor(3, dtype=torch.int64)}
    memory = {"momentum": {"w": torch.ones(1, 2)}, "nothing": {}}
    return Standing(number, state, memory, {"held": [[0, "x"]]}, {"score": 0.1})


def saved(folder, *numbers, keep_last=2):
    checkpoints = Checkpoints(folder, keep_last)
    for number in numbers:
        checkpoints.save(standing(number, float(number)))
    return checkpoints


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_checkpoint_comes_back_as_it_was_in_the_same_order(tmp_path):
    found = saved(tmp_path, 3).last()
    assert list(found.state) == ["b", "a"]
    assert found.state["b"].tolist() == [3.0, 3.0]
    assert found.state["a"].dtype is torch.int64
    assert {name: list(state) for name, state in found.memory.items()} == {
        "momentum": ["w"],
        "nothing": [],
    }
    assert (found.number, found.engine, found.told) == (3, {"held": [[0, "x"]]}, {"score": 0.1})


def test_only_the_last_are_kept_in_the_order_of_rounds(tmp_path):
    saved(tmp_path, 9, 99999, 100000)
    assert names(tmp_path) == ["round-100000", "round-99999"]
    assert last_round(tmp_path) == 100000
    assert saved(tmp_path / "none", 1, keep_last=0).last() is None
    assert last_round(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "standing.json", "SHA256"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(name, harm, tmp_path, caplog):
    checkpoints = saved(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "round-00002" / name
    blob = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(
            blob[:-3] if harm == "cut" else blob[:9] + bytes([blob[9] ^ 1]) + blob[10:]
        )
    with caplog.at_level(logging.WARNING):
        assert checkpoints.last().number == 1
    (line,) = caplog.messages
    assert "round-00002 is damaged" in line


def test_a_full_disk_is_told_and_leaves_the_last_good_one(tmp_path, caplog, monkeypatch):
    checkpoints = saved(tmp_path, 1)

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        checkpoints.save(standing(2))
    assert caplog.messages == ["checkpoint round-00002 is not saved: No space left on device"]
    assert names(tmp_path) == ["round-00001"]
    assert checkpoints.last().number == 1


def test_what_was_prepared_is_written_once_and_a_damaged_one_is_made_anew(tmp_path):
    checkpoints, made = Checkpoints(tmp_path, 2), {"mimic": {"w": torch.ones(2)}}
    assert checkpoints.prepared() == {}
    checkpoints.save_prepared(made)
    checkpoints.save_prepared({"mimic": {"w": torch.zeros(2)}})
    assert checkpoints.prepared()["mimic"]["w"].tolist() == [1.0, 1.0]
    (tmp_path / "checkpoints" / "prepared" / "SHA256").write_text("")
    assert checkpoints.prepared() == {}
    assert names(tmp_path) == []


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
WHOLE = {"round": 2, "engine": {}, "told": {}, "tensors": {"state": ["b", "a"]}}
VALUES = st.one_of(
    st.binary(max_size=60),
    ODD.map(lambda odd: json.dumps(odd).encode()),
    st.tuples(st.sampled_from(sorted(WHOLE)), ODD).map(
        lambda change: json.dumps({**WHOLE, change[0]: change[1]}).encode()
    ),
    st.sampled_from(sorted(WHOLE)).map(
        lambda gone: json.dumps({k: v for k, v in WHOLE.items() if k != gone}).encode()
    ),
    st.just(b"[" * 100_000),
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(VALUES)
def test_any_values_whose_sums_fit_are_read_or_passed_over(tmp_path, caplog, blob):
    caplog.clear()
    checkpoints = saved(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints" / "round-00002"
    files = {"tensors.safetensors": (folder / "tensors.safetensors").read_bytes()}
    files["standing.json"] = blob
    (folder / "standing.json").write_bytes(blob)
    sums = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    (folder / "SHA256").write_text("".join(sums))
    found = checkpoints.last()
    if caplog.messages:
        (line,) = caplog.messages
        assert "round-00002 is damaged" in line
        assert found.number == 1
    assert isinstance(found.engine, dict)


def test_a_folder_that_is_of_no_round_is_not_looked_at(tmp_path):
    checkpoints = saved(tmp_path, 1)
    (tmp_path / "checkpoints" / "round-old").mkdir()
    assert checkpoints.last().number == last_round(tmp_path) == 1
