from __future__ import annotations

import math
from dataclasses import astuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.learning.evaluate import fidelity

LN3 = math.log(3)
rows = st.lists(
    st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3), min_size=1, max_size=5
)


def test_two_samples_of_two_classes_by_hand():
    # The cloud says (3/4, 1/4) and (1/4, 3/4), the mimic (1/4, 3/4) and (1/10, 9/10): wrong
    # on the first sample, right on the second. Three of four logits are ln 3 apart.
    cloud = torch.tensor([[LN3, 0.0], [0.0, LN3]])
    mimic = torch.tensor([[0.0, LN3], [0.0, 2 * LN3]])
    first = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    second = 0.25 * math.log(2.5) + 0.75 * math.log(0.75 / 0.9)
    found = fidelity(cloud, mimic)
    assert found.logit_mse == pytest.approx(0.75 * LN3**2)
    assert found.agreement == 0.5
    assert found.kl == pytest.approx((first + second) / 2, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(rows)
def test_identical_logits_agree_in_everything(logits):
    found = fidelity(torch.tensor(logits), torch.tensor(logits))
    assert astuple(found) == (0.0, 1.0, pytest.approx(0.0, abs=1e-6))


def test_a_shift_of_all_logits_of_a_sample_counts_in_the_error_alone():
    logits = torch.tensor([[1.0, 0.0, -2.0], [0.0, 3.0, 1.0]])
    found = fidelity(logits, logits + 2)
    assert astuple(found) == (4.0, 1.0, pytest.approx(0.0, abs=1e-6))


def test_without_samples_nothing_is_a_number():
    assert all(
        math.isnan(value) for value in astuple(fidelity(torch.empty(0, 3), torch.empty(0, 3)))
    )
