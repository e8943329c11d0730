from __future__ import annotations

import json
import os
import pickle
import stat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file
from torch import nn

from dccl_flower.checkpoint import from_bytes, load_models, save_models, to_bytes


def states():
    torch.manual_seed(0)
    models = {"mimic": nn.Linear(2, 3), "co_submodel": nn.Sequential(nn.BatchNorm1d(2))}
    return {name: model.state_dict() for name, model in models.items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, state in left.items():
        assert state.keys() == right[name].keys()
        for key, tensor in state.items():
            assert tensor.dtype == right[name][key].dtype
            assert torch.equal(tensor, right[name][key]), (name, key)


def test_models_come_back_as_they_were_saved(tmp_path):
    save_models(tmp_path, states())
    assert_same(load_models(tmp_path), states())


def test_one_safetensors_file_a_submodel(tmp_path):
    paths = save_models(tmp_path / "run" / "models", states())
    assert [path.name for path in paths] == ["mimic.safetensors", "co_submodel.safetensors"]
    assert sorted((tmp_path / "run" / "models").iterdir()) == sorted(paths)
    assert_same({path.stem: load_file(path) for path in paths}, states())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_dtypes_are_kept(tmp_path, dtype):
    state = {"model": {"x": torch.arange(4).to(dtype)}}
    save_models(tmp_path, state)
    assert_same(load_models(tmp_path), state)


def test_parameters_and_transposed_tensors_can_be_saved(tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    save_models(tmp_path, {"model": {"p": nn.Parameter(weight), "t": weight.T}})
    expected = {"p": weight, "t": torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])}
    assert_same(load_models(tmp_path), {"model": expected})


def test_saving_again_replaces_the_file(tmp_path):
    for value in (1.0, 2.0):
        save_models(tmp_path, {"model": {"x": torch.tensor([value])}})
    assert load_models(tmp_path)["model"]["x"].item() == 2.0


def test_a_file_left_half_written_is_not_read(tmp_path):
    save_models(tmp_path, states())
    (tmp_path / "cloud_submodel.partial").write_bytes(b"half")
    assert load_models(tmp_path).keys() == states().keys()


def test_a_pickle_in_place_of_safetensors_is_refused(tmp_path):
    torch.save(states()["mimic"], tmp_path / "mimic.safetensors")
    with pytest.raises(Exception, match=r"(?i)header"):
        load_models(tmp_path)


def test_an_empty_folder_holds_no_model(tmp_path):
    assert load_models(tmp_path) == {}


def test_a_state_survives_as_bytes():
    for state in states().values():
        assert_same({"model": load(to_bytes(state))}, {"model": state})


def test_bytes_are_the_same_each_time_and_those_of_the_file(tmp_path):
    state = states()["mimic"]
    (path,) = save_models(tmp_path, {"mimic": state})
    assert to_bytes(state) == to_bytes(states()["mimic"]) == path.read_bytes()


def test_parameters_and_transposed_tensors_can_become_bytes():
    weight = torch.arange(6.0).view(2, 3)
    back = load(to_bytes({"p": nn.Parameter(weight), "t": weight.T}))
    assert_same({"model": back}, {"model": {"p": weight, "t": weight.T}})


class Tied(nn.Module):
    """A block under two names, as users tie weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.head = nn.Linear(3, 2)
        self.head.weight = nn.Parameter(self.first.weight[:2].detach())  # a view of a larger one


def test_tied_weights_come_back_under_every_name(tmp_path):
    state = Tied().state_dict()
    save_models(tmp_path, {"mimic": state})
    assert_same(load_models(tmp_path), {"mimic": state})
    back = load(to_bytes(state))
    assert_same({"model": back}, {"model": state})
    other = Tied()
    other.load_state_dict(back)
    assert torch.equal(other.second.weight, state["first.weight"])


@pytest.mark.parametrize(
    "views",
    [
        {"left": (slice(0, 2), slice(0, 2)), "right": (slice(0, 2), slice(1, 3))},
        {"part": slice(1, 3), "whole": slice(None)},
        {"first": slice(0, 1), "second": slice(1, 2)},
        {"none": slice(0, 0), "again": slice(0, 0)},
    ],
)
def test_views_of_one_larger_tensor_are_saved_as_they_look(views):
    whole = torch.arange(12.0).view(4, 3)
    state = {name: whole[part] for name, part in views.items()}
    back = load(to_bytes(state))
    assert_same({"model": back}, {"model": state})
    assert len(to_bytes(state)) < 400  # not the storage behind each view


def test_no_tensors_at_all_can_become_bytes():
    assert load(to_bytes({})) == {}


def test_models_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        paths = save_models(tmp_path, states())
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o640, 0o640]


def safetensors(shape, numbers, dtype="F32"):
    """Return a blob whose header tells a shape that need not be what it holds."""
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, 4 * numbers]}
    header = json.dumps({"a": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * numbers)


@pytest.mark.parametrize(
    "blob",
    [
        safetensors([10**13], 4),
        safetensors([3], 4),
        safetensors([-4], 4),
        safetensors([4], 4, "F4"),
        (2**62).to_bytes(8, "little") + b"{}",
        pickle.dumps({"a": 1}),
        b"",
        "text",
    ],
)
def test_bytes_that_are_not_a_state_s_are_refused_before_memory_is_set_aside(blob):
    with pytest.raises(ValueError, match=r"^not safetensors: "):
        from_bytes(blob)
    assert from_bytes(safetensors([4], 4))["a"].tolist() == [0.0] * 4


WHOLE = to_bytes({"a": torch.arange(4.0), "b": torch.ones(2, 2)})
JUNK = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=60).map(lambda tail: len(tail).to_bytes(8, "little") + tail),
    st.integers(0, len(WHOLE)).map(lambda end: WHOLE[:end]),
    st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)).map(
        lambda at: WHOLE[: at[0]] + bytes([at[1]]) + WHOLE[at[0] + 1 :]
    ),
)


@settings(deadline=None)
@given(JUNK)
def test_any_bytes_are_a_state_no_larger_than_they_are_or_refused(blob):
    try:
        state = from_bytes(blob)
    except ValueError:
        return
    assert sum(tensor.nbytes for tensor in state.values()) <= len(blob)
