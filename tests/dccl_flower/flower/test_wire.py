from __future__ import annotations

import pytest
import torch

from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.wire import check_state, to_arrays, to_state


def test_a_state_survives_the_wire_in_order():
    state = {"b": torch.tensor([1.0, -2.0]), "a": torch.zeros(2, 3), "s": torch.tensor(0.5)}
    back = to_state(to_arrays(state))
    assert list(back) == ["b", "a", "s"]
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_received_tensors_own_their_memory():
    back = to_state(to_arrays({"a": torch.zeros(2)}))
    back["a"] += 1
    assert torch.equal(back["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"b": torch.zeros(2)}, "device 3 replied with other arrays"),
        ({"a": torch.zeros(3)}, r"device 3 replied with 'a' of shape \(3,\), expected \(2,\)"),
        ({"a": torch.tensor([0.0, float("nan")])}, "device 3 .* 'a' that is not finite"),
        ({"a": torch.tensor([0.0, float("inf")])}, "device 3 .* 'a' that is not finite"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error(state, message):
    with pytest.raises(ValueError, match=message):
        check_state(state, {"a": torch.zeros(2)}, "device 3")


def test_a_fresh_ledger_names_every_kind():
    kinds = {"mimic_down", "co_down", "co_up", "exemplars_down", "correction_down"}
    kinds |= {"other_down", "other_up"}
    assert dict(Ledger().totals) == dict.fromkeys(kinds, 0)
