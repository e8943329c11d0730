from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_samples import NAMES, small_catalogue, small_samples

from dccl_flower.learning.sample_classifier import (
    classifier_inputs,
    keep_hard,
    local_probability,
    weigh_soft,
)
from dccl_flower.models.recommender import build_recommender
from dccl_flower.models.wide_deep import mean_of_items
from dccl_flower.seeds import isolated_rng, numpy_generator

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(np.array)


def model_of(name, user_ids=True):
    with isolated_rng(0):
        return build_recommender(
            name, small_catalogue(), embedding=3, hidden=(4,), user_ids=user_ids
        )


def normal(count, mean, *keys, size=1):
    return numpy_generator(0, *keys).normal(mean, size=(count, size))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_the_representation_the_history_and_the_label_if_asked_for(name):
    model, samples = model_of(name, user_ids=False), small_samples()
    seen = classifier_inputs(model, samples, with_label=True, with_profile=True)
    with torch.no_grad():
        parts = [model.represent(samples), mean_of_items(model.embedded, samples["history"])]
    expected = torch.cat([*parts, samples["label"].unsqueeze(1)], 1)
    assert seen.dtype == np.float64
    np.testing.assert_array_equal(seen, expected.double().numpy())
    without = classifier_inputs(model, samples, with_label=False, with_profile=True)
    np.testing.assert_array_equal(without, seen[:, :-1])


@pytest.mark.parametrize("name", ["wide_deep", "din"])
def test_no_user_s_number_is_seen_and_a_profile_only_if_asked_for(name):
    model, samples = model_of(name), small_samples()
    changed = {**samples, "user": samples["user"].flip(0)}
    for with_profile in (False, True):
        seen, other = (
            classifier_inputs(model, given, with_label=True, with_profile=with_profile)
            for given in (samples, changed)
        )
        np.testing.assert_array_equal(seen, other)
    changed["profile"] = (samples["profile"] + 1) % 4
    for with_profile in (False, True):
        seen, other = (
            classifier_inputs(model, given, with_label=True, with_profile=with_profile)
            for given in (samples, changed)
        )
        assert np.array_equal(seen, other) != with_profile


def test_samples_are_left_as_they_are():
    samples = small_samples()
    classifier_inputs(model_of("din"), samples, with_label=True, with_profile=False)
    assert all(torch.equal(samples[name], values) for name, values in small_samples().items())


def test_odds_are_the_ratio_of_the_densities():
    # Of normal densities about 1 and -1 the ratio at x is exp(2 x), however many are outside.
    outside = normal(2000, -1, "outside")
    p = local_probability(normal(500, 1, "own"), outside, seed=0)
    slope, start = np.polyfit(outside[:, 0], np.log(p / (1 - p)), 1)
    assert slope == pytest.approx(2, abs=0.15)
    assert start == pytest.approx(0, abs=0.15)


def test_no_sample_is_scored_by_a_classifier_that_has_seen_it():
    # With more inputs than samples a classifier knows by heart which of them are its own, though
    # nothing but chance tells them apart: seen, all of them would score near 0.
    own, outside = normal(20, 0, "own", size=80), normal(20, 0, "outside", size=80)
    assert local_probability(own, outside, seed=0).mean() > 0.3


def test_a_sample_outside_that_is_like_an_own_one_scores_high():
    own, outside = normal(30, 3, "own", size=4), normal(30, -3, "outside", size=4)
    outside[7] = own[0]
    p = local_probability(own, outside, seed=0)
    assert p.argmax() == 7
    assert p[7] > 0.5 > np.delete(p, 7).max()


def test_the_scale_of_an_input_does_not_matter():
    own, outside = normal(20, 1, "own", size=2), normal(30, 0, "outside", size=2)
    scale = np.array([1e-3, 1e3])
    np.testing.assert_allclose(
        local_probability(own, outside, 0), local_probability(own * scale, outside * scale, 0)
    )


def test_folds_are_the_seed_s_of_any_size_and_the_global_generator_is_left_alone():
    own, outside = normal(20, 0.5, "own"), normal(40, 0, "outside")
    state = np.random.get_state()[1].tolist()
    first, again, other = (local_probability(own, outside, seed) for seed in (1, 1, 2**62 + 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize(("own", "outside"), [(0, 5), (1, 5), (5, 1), (5, 0), (1, 0)])
def test_with_fewer_than_two_samples_on_a_side_nothing_is_kept(own, outside):
    p = local_probability(normal(own, 0, "own"), normal(outside, 0, "outside"), seed=0)
    assert p.tolist() == [0.0] * outside
    assert keep_hard(p).tolist() == weigh_soft(p, 10).tolist() == [0.0] * outside


@pytest.mark.parametrize(("own", "outside"), [(2, 9), (3, 2), (4, 50)])
def test_there_are_no_more_folds_than_samples(own, outside):
    p = local_probability(normal(own, 1, "own"), normal(outside, 0, "outside"), seed=0)
    assert p.shape == (outside,)
    assert ((p > 0) & (p < 1)).all()


def test_one_fold_is_refused():
    with pytest.raises(ValueError, match="folds=1: must be 2 or more"):
        local_probability(normal(5, 0), normal(5, 0), 0, folds=1)


def test_kept_and_weighed_by_hand():
    p = np.array([0.0, 0.2, 0.5, 0.75, 0.9, 1.0])
    assert keep_hard(p, 0.5).tolist() == [0, 0, 1, 1, 1, 1]
    torch.testing.assert_close(weigh_soft(p, 4), torch.tensor([0, 0.25, 1, 3, 4, 4]))


@settings(deadline=None, max_examples=50)
@given(probabilities, st.floats(0.1, 100), st.floats(0.01, 1))
def test_weights_rise_with_the_probability_within_bounds(p, cap, threshold):
    for weights, most in (
        (weigh_soft(np.sort(p), cap), cap),
        (keep_hard(np.sort(p), threshold), 1),
    ):
        assert weights.shape == p.shape
        assert weights.dtype == torch.float32
        assert (weights.diff() >= 0).all()
        assert weights.min() >= 0
        assert weights.max() <= most * (1 + 1e-6)


@settings(deadline=None, max_examples=50)
@given(probabilities, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_higher_threshold_keeps_some_of_what_a_lower_one_keeps(p, one, other):
    low, high = sorted((one, other))
    assert (keep_hard(p, high) <= keep_hard(p, low)).all()


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, float("nan")])
def test_a_threshold_out_of_bounds_is_refused(threshold):
    with pytest.raises(ValueError, match="must be above 0, and 1 at most"):
        keep_hard(np.array([0.5]), threshold)


@pytest.mark.parametrize("cap", [0, -1, float("inf"), float("nan")])
def test_a_cap_out_of_bounds_is_refused(cap):
    with pytest.raises(ValueError, match="must be a number above 0"):
        weigh_soft(np.array([0.5]), cap)
