from __future__ import annotations

from copy import deepcopy
from math import isnan, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_samples import ITEMS, drawn_samples, small_catalogue, small_samples

from dccl_flower.data.samples import joined, taken
from dccl_flower.learning.augmented import (
    area_under_curve,
    fit_augmented,
    learn_from_users,
    negative_loss,
)
from dccl_flower.learning.matching import Pool, match_keys
from dccl_flower.learning.recommend import FitRecipe, fit, predict
from dccl_flower.learning.sample_classifier import (
    classifier_inputs,
    keep_hard,
    local_probability,
    weigh_soft,
)
from dccl_flower.models.recommender import build_recommender
from dccl_flower.seeds import isolated_rng, torch_generator

RECIPE = FitRecipe(epochs=2, batch_size=8, lr=0.05)


def model_of(name="wide_deep", seed=0):
    with isolated_rng(seed):
        return build_recommender(name, small_catalogue(), embedding=3, hidden=(4,))


def drawn(count, seed):
    return drawn_samples(count, torch_generator(seed))


def with_labels(samples, is_liked):
    return {**samples, "label": is_liked.float()}


def states_equal(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def quality_of(model, own, quality=area_under_curve):
    return quality(predict(model, own), own["label"])


def test_qualities_by_hand():
    logits, labels = torch.tensor([0.0, 1, 2, 0]), torch.tensor([0.0, 1, 0, 1])
    # Of the four pairs of a liked and another row one is right and one equal.
    assert area_under_curve(logits, labels) == pytest.approx(1.5 / 4)
    assert isnan(area_under_curve(logits, torch.ones(4)))
    assert negative_loss(torch.zeros(4), torch.ones(4)) == pytest.approx(-log(2))


def test_augmented_training_fits_own_samples_and_weighed_ones_together():
    own, outside, weights = drawn(9, 1), drawn(6, 2), torch.tensor([0, 0.5, 1, 2, 0, 3])
    model, by_hand = model_of(), model_of()
    loss = fit_augmented(model, own, outside, weights, RECIPE, torch_generator(0))
    expected = fit(
        by_hand,
        by_hand.parameters(),
        joined([own, outside]),
        RECIPE,
        torch_generator(0),
        torch.cat([torch.ones(9), weights]),
    )
    assert loss == expected
    assert states_equal(model, by_hand.state_dict())


def test_with_nothing_kept_or_nothing_offered_it_is_training_on_own_samples():
    own = drawn(9, 1)
    local = model_of()
    fit(local, local.parameters(), own, RECIPE, torch_generator(0))
    for offered in (0, 6):
        model, outside = model_of(), drawn(offered, 2)
        fit_augmented(model, own, outside, torch.zeros(offered), RECIPE, torch_generator(0))
        assert states_equal(model, local.state_dict())


def test_the_heavier_of_two_contradicting_samples_wins():
    own = taken(small_samples(), torch.tensor([0]))
    outside = with_labels(own, 1 - own["label"])
    recipe = FitRecipe(epochs=60, batch_size=8, lr=0.05)
    logits = []
    for weight in (0.1, 10.0):
        model = model_of()
        fit_augmented(model, own, outside, torch.tensor([weight]), recipe, torch_generator(0))
        logits.append(predict(model, own).item())
    assert logits[0] < -1 < 1 < logits[1]


def contradicting_users():
    """Return own samples, of which half the items are liked, and users like and unlike it."""
    own, like, unlike = (drawn(40, seed) for seed in (1, 2, 3))
    is_liked = [samples["item"] < ITEMS // 2 for samples in (own, like, unlike)]
    return (
        with_labels(own, is_liked[0]),
        with_labels(like, is_liked[1]),
        with_labels(unlike, ~is_liked[2]),
    )


@pytest.mark.parametrize("quality", [area_under_curve, negative_loss])
def test_what_is_learnt_of_a_user_stays_only_where_it_helps(quality):
    own, like, unlike = contradicting_users()
    model, expected = model_of(), model_of()
    recipe = FitRecipe(epochs=3, batch_size=8, lr=0.02)
    users = [unlike, like, unlike]
    assert learn_from_users(model, own, users, recipe, torch_generator(0), quality) == [
        False,
        True,
        False,
    ]
    generator = torch_generator(0)
    fit(model_of(), expected.parameters(), unlike, recipe, generator)  # draws, and changes nothing
    fit(expected, expected.parameters(), like, recipe, generator)
    assert states_equal(model, expected.state_dict())


def test_a_gain_within_the_threshold_is_none():
    own, like, _ = contradicting_users()
    model = model_of()
    before = deepcopy(model.state_dict())
    users, generator = [like, like], torch_generator(0)
    assert learn_from_users(model, own, users, RECIPE, generator, threshold=1) == [False, False]
    assert states_equal(model, before)


def test_without_an_auc_nobody_helps_and_with_the_loss_one_may():
    _, like, _ = contradicting_users()
    like = with_labels(like, torch.ones(40))
    own, model = taken(like, torch.arange(3)), model_of()
    before = deepcopy(model.state_dict())
    assert learn_from_users(model, own, [like], RECIPE, torch_generator(0)) == [False]
    assert states_equal(model, before)
    assert learn_from_users(model, own, [like], RECIPE, torch_generator(0), negative_loss) == [True]


def test_with_no_users_nothing_changes():
    model = model_of()
    before = deepcopy(model.state_dict())
    assert learn_from_users(model, drawn(9, 1), [], RECIPE, torch_generator(0)) == []
    assert states_equal(model, before)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 999), st.sampled_from([area_under_curve, negative_loss]))
def test_nobody_s_samples_make_a_device_worse(seed, quality):
    own, model = drawn(12, seed), model_of(seed=seed)
    start = quality_of(model, own, quality)
    users = [drawn(10, seed + number) for number in (1, 2, 3)]
    kept = learn_from_users(model, own, users, RECIPE, torch_generator(seed), quality)
    end = quality_of(model, own, quality)
    if any(kept):
        assert end > start
    else:
        assert end == start or isnan(start)


@pytest.mark.parametrize("with_label", [False, True])
def test_matched_filtered_and_trained_a_device_gains_of_those_like_it(with_label):
    # Users 0 to 2 are shown one half of the items, users 3 and 4 the other half.
    generator = torch_generator(0)
    samples = drawn_samples(400, generator)
    is_low = samples["user"] < 3
    samples["item"] = torch.where(is_low, samples["item"] % 3, 3 + samples["item"] % 3)
    own = taken(samples, (samples["user"] == 0).nonzero().flatten()[:12])
    model = model_of()
    fit(model, model.parameters(), samples, RECIPE, generator)
    pool = Pool(samples, match_keys(model, samples))
    matched = pool.nearest(match_keys(model, own), 20, without_user=0)
    outside = taken(samples, torch.cat([matched, pool.random(60, 0, generator)]).unique())
    seen = [
        classifier_inputs(model, part, with_label=with_label, with_profile=False)
        for part in (own, outside)
    ]
    p = local_probability(*seen, seed=0)
    hard, soft = keep_hard(p), weigh_soft(p, 5)
    assert 0 < hard.sum() < len(hard)
    assert (outside["item"][hard > 0] < 3).float().mean() > (outside["item"] < 3).float().mean()
    assert np.isfinite(fit_augmented(model, own, outside, hard, RECIPE, generator))
    assert np.isfinite(fit_augmented(model, own, outside, soft, RECIPE, generator))
