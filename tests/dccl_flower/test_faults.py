from __future__ import annotations

import pickle

import pytest
import torch

from dccl_flower.faults import (
    KINDS,
    LARGEST,
    BadAnswer,
    check_count,
    check_norm,
    check_values,
    fault_of,
    in_words,
    named,
)


def kind_of(call, *given):
    with pytest.raises(BadAnswer) as caught:
        call(*given)
    assert caught.value.kind in KINDS
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_names_device_and_tensor(odd):
    state = {"b": torch.zeros(2), "a": torch.tensor([0.0, odd])}
    kind, line = kind_of(check_values, state, "device 3")
    assert (kind, line) == (
        "not_finite",
        "device 3 replied with a value in 'a' that is not finite",
    )
    state = {"b": torch.tensor([-odd, odd]), "a": torch.zeros(0)}
    assert kind_of(check_values, state, "device 3")[0] == "not_finite"


@pytest.mark.parametrize("value", [3e38, -3e38, 1.01 * LARGEST])
def test_a_value_that_overflows_in_the_next_round_is_laid_to_the_device_that_sent_it(value):
    kind, line = kind_of(check_values, {"w": torch.tensor([1.0, value])}, "device 3")
    assert kind == "overflow"
    assert line.startswith(f"device 3 replied with {abs(value):.3g} in 'w': more than 1e+18")


def test_values_up_to_the_largest_pass_and_so_does_nothing_at_all():
    check_values({"w": torch.tensor([LARGEST, -LARGEST]), "none": torch.zeros(0)}, "device 3")
    check_values({}, "device 3")


def test_the_norm_is_that_of_the_update_over_all_tensors():
    base = {"w": torch.tensor([1.0, 1.0]), "b": torch.tensor([5.0])}
    state = {"w": torch.tensor([4.0, 1.0]), "b": torch.tensor([9.0])}  # moved by 3 and 4
    check_norm(state, base, 5.0, "device 3")
    kind, line = kind_of(check_norm, state, base, 4.99, "device 3")
    assert kind == "norm"
    assert line == "device 3 replied with an update of norm 5: rounds.max_norm=4.99"
    assert kind_of(check_norm, state, {}, 9.8, "device 3")[0] == "norm"  # 16 + 1 + 81


@pytest.mark.parametrize("count", [0, -3, 2**31, 10**15, 2**63, 1.0, True, None, "5"])
def test_a_number_of_samples_is_a_whole_number_in_a_plausible_range(count):
    kind, line = kind_of(check_count, count, "device 2")
    assert kind == "samples"
    assert line.startswith("device 2 replied with num-examples=")
    assert check_count(7, "device 2") == 7


def test_an_error_becomes_one_line_even_where_it_says_nothing():
    assert in_words(MemoryError()) == "MemoryError: no message"
    assert in_words(KeyError("a\n b")) == r"KeyError: 'a\n b'"
    assert in_words(ValueError("two\nlines")) == "ValueError: two lines"
    assert str(fault_of(MemoryError(), 4)) == "raised: device 4: MemoryError: no message"
    assert str(fault_of(BadAnswer("lost", "device 4 lost it"), 4)) == "lost: device 4 lost it"


def test_many_devices_are_not_all_named():
    assert named([3]) == "device 3"
    assert named([3, 5]) == "devices 3, 5"
    assert named(range(23), most=3) == "devices 0, 1, 2 and 20 more"


def test_a_bad_answer_survives_the_way_to_another_process():
    back = pickle.loads(pickle.dumps(BadAnswer("lost", "device 4 lost it")))
    assert (back.kind, str(back)) == ("lost", "device 4 lost it")
