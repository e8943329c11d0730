from __future__ import annotations

import pytest
import torch

from dccl_flower.flower.ledger import Ledger
from dccl_flower.flower.wire import check_finite, to_arrays, to_state


def test_a_state_survives_the_wire_in_order():
    state = {"b": torch.tensor([1.0, -2.0]), "a": torch.zeros(2, 3), "s": torch.tensor(0.5)}
    back = to_state(to_arrays(state), state)
    assert list(back) == ["b", "a", "s"]
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_received_tensors_own_their_memory():
    state = {"a": torch.zeros(2)}
    back = to_state(to_arrays(state), state)
    back["a"] += 1
    assert torch.equal(back["a"], torch.ones(2))


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_an_error(odd):
    with pytest.raises(ValueError, match=r"device 3 .* 'a' that is not finite"):
        check_finite({"b": torch.zeros(2), "a": torch.tensor([0.0, odd])}, "device 3")


def test_a_record_of_another_model_is_an_error():
    with pytest.raises(ValueError, match=r"expected float32 \(3,\)"):
        to_state(to_arrays({"a": torch.zeros(2)}), {"a": torch.zeros(3)})


def test_a_fresh_ledger_names_every_kind():
    kinds = {"mimic_down", "co_down", "co_up", "exemplars_down", "correction_down"}
    kinds |= {"other_down", "other_up"}
    assert dict(Ledger().totals) == dict.fromkeys(kinds, 0)
