from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dccl_flower.learning.losses import LOSSES


def cross_entropy(counts):
    return LOSSES["ce"](lambda: counts)


def prior_corrected(counts):
    return LOSSES["prior_corrected"](lambda: counts)


logit_rows = st.lists(
    st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3), min_size=1, max_size=5
)


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        ([0.0, 0.0, 0.0], 0, math.log(4)),  # the prior alone: 1/4, 1/4, 1/2
        ([0.0, 0.0, 0.0], 2, math.log(2)),
        ([math.log(2), 0.0, 0.0], 0, math.log(2.5)),  # 2/4 of 2/4 + 1/4 + 2/4
        ([math.log(2), 0.0, 0.0], 1, math.log(5)),  # 1/4 of the same
    ],
)
def test_prior_corrected_by_hand(logits, label, expected):
    loss = prior_corrected(torch.tensor([10, 10, 20]))
    assert loss(torch.tensor([logits]), torch.tensor([label])).item() == pytest.approx(expected)


def test_prior_corrected_is_the_mean_over_the_batch():
    loss = prior_corrected(torch.tensor([10, 10, 20]))
    value = loss(torch.zeros(2, 3), torch.tensor([0, 2])).item()
    assert value == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_gradient_of_prior_corrected_by_hand():
    # Shifted softmax of (ln 2, 0, 0) under the prior 1/4, 1/4, 1/2 is (0.4, 0.2, 0.4).
    logits = torch.tensor([[math.log(2), 0.0, 0.0]], requires_grad=True)
    prior_corrected(torch.tensor([1, 1, 2]))(logits, torch.tensor([0])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.6, 0.2, 0.4]]))


@settings(deadline=None, max_examples=50)
@given(logit_rows, st.integers(1, 1000))
def test_equal_counts_give_plain_cross_entropy(rows, count):
    logits = torch.tensor(rows)
    labels = torch.arange(len(rows)) % 3
    corrected = prior_corrected(torch.full((3,), count))(logits, labels)
    torch.testing.assert_close(
        corrected, functional.cross_entropy(logits, labels), rtol=1e-5, atol=1e-5
    )


@settings(deadline=None, max_examples=50)
@given(logit_rows)
def test_an_absent_class_gets_exactly_no_gradient(rows):
    features = torch.tensor(rows)
    weight = torch.eye(3).requires_grad_()
    bias = torch.zeros(3, requires_grad=True)
    labels = torch.tensor([0, 2])[torch.arange(len(rows)) % 2]
    loss = prior_corrected(torch.tensor([3, 0, 1]))(features @ weight.T + bias, labels)
    loss.backward()
    assert loss.isfinite()
    assert torch.equal(weight.grad[1], torch.zeros(3))
    assert bias.grad[1] == 0


def test_the_classes_held_do_get_gradient_where_one_is_absent():
    logits = torch.zeros(1, 3, requires_grad=True)
    prior_corrected(torch.tensor([3, 0, 1]))(logits, torch.tensor([2])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, 0.0, -0.75]]))


def test_only_the_proportions_of_the_counts_matter():
    logits, labels = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([1])
    whole = prior_corrected(torch.tensor([1, 3, 4]))(logits, labels)
    shares = prior_corrected(torch.tensor([0.25, 0.75, 1.0]))(logits, labels)
    torch.testing.assert_close(whole, shares)


def test_cross_entropy_does_not_look_at_the_counts():
    logits, labels = torch.tensor([[math.log(3), 0.0]]), torch.tensor([1])
    for counts in ([1, 99], [0, 5]):
        value = cross_entropy(torch.tensor(counts))(logits, labels).item()
        assert value == pytest.approx(math.log(4))


def test_samples_are_counted_only_where_they_matter():
    def never():
        raise AssertionError("counted")

    LOSSES["ce"](never)
    with pytest.raises(AssertionError, match="counted"):
        LOSSES["prior_corrected"](never)
