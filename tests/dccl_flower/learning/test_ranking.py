from __future__ import annotations

from math import isnan, log2, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dccl_flower.learning.ranking import gauc, paired_interval, user_scores

labelled = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=1, max_size=15)
few = settings(deadline=None, max_examples=40)


def scored(logits, labels, k=10):
    found = user_scores(torch.tensor(logits), torch.tensor(labels, dtype=torch.float32), k)
    return found.auc, found.hit, found.ndcg, found.mrr, found.count


def ranks_of(rows):
    """The logits and labels of rows, apart and as floats."""
    values, labels = zip(*rows, strict=True)
    return [float(value) for value in values], [float(label) for label in labels]


def same(one, other):
    return all(a == b or (isnan(a) and isnan(b)) for a, b in zip(one, other, strict=True))


def test_scores_by_hand():
    # From the top: 0, 1, 0, 1, 0. Of six pairs (liked, not) three are in order.
    logits, labels = [5.0, 4, 3, 2, 1], [0, 1, 0, 1, 0]
    gain = (1 / log2(3) + 1 / log2(5)) / (1 + 1 / log2(3))
    assert scored(logits, labels) == pytest.approx((3 / 6, 1, gain, 1 / 2, 5))
    # Of the first alone nothing is liked; the MRR looks at all.
    assert scored(logits, labels, k=1) == pytest.approx((3 / 6, 0, 0, 1 / 2, 5))
    gain = (1 / log2(3)) / (1 + 1 / log2(3))
    assert scored(logits, labels, k=2) == pytest.approx((3 / 6, 1, gain, 1 / 2, 5))


def test_scores_do_not_depend_on_the_sign_or_size_of_logits():
    expected = (0.0, 1, 0.5, 1 / 3, 3)
    for logits in ([1.0, 2, 3], [-3.0, -2, -1], [40.0, 41, 42], [-1e30, 0, 1e30], [0.1, 0.2, 0.3]):
        assert scored(logits, [1, 0, 0]) == pytest.approx(expected)


def test_what_tells_nothing_apart_gains_nothing():
    assert scored([0.0] * 4, [1, 0, 0, 0], k=3) == pytest.approx((0.5, 0, 0, 1 / 4, 4))
    assert scored([0.0] * 4, [0, 0, 0, 1], k=3) == pytest.approx((0.5, 0, 0, 1 / 4, 4))


def test_users_of_one_class_have_no_auc_and_those_who_like_nothing_no_score():
    assert same(scored([1.0, 2], [1, 1]), (nan, 1, 1, 1, 2))
    assert same(scored([1.0, 2], [0, 0]), (nan, nan, nan, nan, 2))


@few
@given(labelled)
def test_auc_is_that_of_scikit_learn(rows):
    logits, labels = ranks_of(rows)
    if 0 < sum(labels) < len(labels):
        assert scored(logits, labels)[0] == pytest.approx(roc_auc_score(labels, logits))


@few
@given(labelled, st.randoms(use_true_random=False), st.integers(1, 12))
def test_only_the_order_of_logits_counts_and_that_of_rows_does_not(rows, random, k):
    expected = scored(*ranks_of(rows), k)
    logits, labels = ranks_of(rows)
    assert same(scored([value**3 + value - 7 for value in logits], labels, k), expected)
    random.shuffle(rows)
    assert same(scored(*ranks_of(rows), k), expected)


@few
@given(labelled)
def test_scores_are_fractions_and_what_is_liked_on_top_is_all_right(rows):
    logits, labels = ranks_of(rows)
    values = [value for value in scored(logits, labels)[:4] if not isnan(value)]
    assert all(0 <= value <= 1 + 1e-6 for value in values)
    best = [value for value in scored(labels, labels)[:4] if not isnan(value)]
    assert best == pytest.approx([1.0] * len(best))


@pytest.mark.parametrize(
    ("logits", "labels", "k", "said"),
    [
        ([], [], 10, r"logits and labels of shapes \(0,\) and \(0,\)"),
        ([1.0], [1, 0], 10, r"of shapes \(1,\) and \(2,\), k=10: must be \(N,\) each, k >= 1"),
        ([1.0], [1], 0, "k=0"),
        ([1.0, nan], [1, 0], 10, "logits: hold NaN"),
    ],
)
def test_what_cannot_be_ranked_is_refused(logits, labels, k, said):
    with pytest.raises(ValueError, match=said):
        scored(logits, labels, k)


def test_gauc_is_weighed_by_rows_over_users_who_have_an_auc():
    aucs, counts = torch.tensor([0.5, 1.0, nan]), torch.tensor([30, 10, 999])
    assert gauc(aucs, counts) == pytest.approx((0.5 * 30 + 1.0 * 10) / 40)
    assert isnan(gauc(torch.tensor([nan]), torch.tensor([3])))
    assert isnan(gauc(torch.empty(0), torch.empty(0)))


def interval(differences, weights=None, seed=0, **options):
    values = np.array(differences, dtype=float)
    weights = np.ones(len(values)) if weights is None else np.array(weights)
    return paired_interval(values, weights, np.random.default_rng(seed), **options)


def test_equal_differences_leave_no_doubt():
    assert interval([0.25] * 5, [1, 2, 3, 4, 5]) == pytest.approx((0.25, 0.25))
    assert interval([0.25, nan], [1, 9]) == pytest.approx((0.25, 0.25))


def test_bounds_are_those_of_a_normal_mean():
    values = np.random.default_rng(1).normal(0.1, 1, 400)
    low, high = interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    narrow = interval(values, level=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high
    assert (low, high) == interval(values)
    assert (low, high) != interval(values, seed=2)


def test_weights_of_two_count_as_much_as_one_user_more():
    low, high = interval([0.0, 1.0], [1, 3])
    assert (low, high) == (0.0, 1.0)
    # Of two users drawn, both alike half the time, else the mean is 3/4.
    assert interval([0.0, 1.0], [1, 3], level=0.4) == pytest.approx((0.75, 0.75))


@pytest.mark.parametrize(
    ("differences", "weights", "level", "said"),
    [
        ([], [], 0.9, "needs users with a difference"),
        ([nan], [1.0], 0.9, "needs users with a difference"),
        ([1.0, 2.0], [1.0, 0.0], 0.9, "of weights above 0"),
        ([1.0], [1.0], 1.0, r"level=1.0: must be between 0 and 1"),
        ([1.0], [1.0], 0.0, r"level=0.0"),
    ],
)
def test_what_has_no_interval_is_refused(differences, weights, level, said):
    with pytest.raises(ValueError, match=said):
        interval(differences, weights, level=level)
