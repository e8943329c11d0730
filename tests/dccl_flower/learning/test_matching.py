from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_samples import NAMES, drawn_samples, small_catalogue, small_samples
from torch.nn import functional

from dccl_flower.data.samples import count, taken
from dccl_flower.learning.matching import KeyWeights, Pool, match_keys, rows_of_some_users
from dccl_flower.models.recommender import build_recommender
from dccl_flower.seeds import isolated_rng, torch_generator

NOBODY = 99


def model_of(name="wide_deep"):
    with isolated_rng(0):
        return build_recommender(name, small_catalogue(), embedding=3, hidden=(4,))


def pool_of(users, degrees=None, items=None, labels=None):
    """Return a pool whose keys are directions in the plane."""
    degrees = [0.0] * len(users) if degrees is None else degrees
    samples = {
        "user": torch.tensor(users),
        "item": torch.tensor([0] * len(users) if items is None else items),
        "label": torch.tensor([1] * len(users) if labels is None else labels).float(),
    }
    return Pool(samples, keys_at(*degrees))


def keys_at(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_of_length_one_and_need_no_more_than_items_and_histories(name):
    model, samples = model_of(name), small_samples()
    keys = match_keys(model, {part: samples[part] for part in ("item", "history")})
    assert keys.shape == (5, 18)  # embeddings of an item and its two features, twice
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(5))
    assert torch.equal(keys, match_keys(model, samples))


def test_the_cosine_of_keys_is_the_weighted_mean_of_their_parts_cosines():
    model, samples = model_of(), taken(small_samples(), torch.tensor([1, 2]))
    only = [KeyWeights(1, 0, 0), KeyWeights(0, 1, 0), KeyWeights(0, 0, 1)]
    item, features, history = (cosine(match_keys(model, samples, weights)) for weights in only)
    both = cosine(match_keys(model, samples, KeyWeights(3, 0, 1)))
    assert both == pytest.approx((3 * item + history) / 4, abs=1e-6)
    together = cosine(match_keys(model, samples))
    assert together == pytest.approx((item + features + history) / 3, abs=1e-6)


def cosine(keys):
    return (keys[0] @ keys[1]).item()


def test_the_history_s_part_is_the_mean_of_its_items_and_padding_is_none():
    model = model_of()
    samples = {
        "item": torch.tensor([0, 0]),
        "history": torch.tensor([[-1, -1, 4, 4], [4, 4, 4, 4]]),
    }
    assert cosine(match_keys(model, samples)) == pytest.approx(1, abs=1e-6)
    samples["history"][0] = -1
    keys = match_keys(model, samples, KeyWeights(1, 0, 1))
    assert keys[0, 9:].tolist() == [0.0] * 9
    assert cosine(keys) == pytest.approx(0.5**0.5, abs=1e-6)


def test_a_device_without_samples_has_no_keys_and_finds_nothing():
    nothing = {"item": torch.empty(0, dtype=torch.long), "history": torch.empty((0, 4)).long()}
    keys = match_keys(model_of(), nothing)
    assert keys.shape == (0, 18)
    assert pool_of([1, 2]).nearest(keys, 3, NOBODY).tolist() == []


@pytest.mark.parametrize("weights", [(-1, 1, 1), (0, 0, 0), (float("nan"), 1, 1)])
def test_weights_of_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="must be 0 or more, and not all 0"):
        KeyWeights(*weights)


def test_nearest_by_hand():
    pool = pool_of([1, 2, 2, 3, 1], [0, 10, 30, 90, 100])
    assert pool.nearest(keys_at(2), 2, NOBODY).tolist() == [0, 1]
    assert pool.nearest(keys_at(2), 2, without_user=1).tolist() == [1, 2]
    # The first key finds 0 and 1, the second 3 and 4; 4 is a degree away, 0 two.
    assert pool.nearest(keys_at(2, 99), 2, NOBODY).tolist() == [4, 0, 1, 3]


def test_a_sample_close_to_two_keys_is_found_once():
    pool = pool_of([1, 2, 3], [0, 10, 90])
    assert pool.nearest(keys_at(1, 8), 1, NOBODY).tolist() == [0, 1]
    assert pool.nearest(keys_at(1, 2), 2, NOBODY).tolist() == [0, 1]


def test_equally_close_samples_come_in_their_order_and_a_small_pool_gives_what_it_has():
    pool = pool_of([3, 1, 2, 1], [5, 5, 5, 5])
    assert pool.nearest(keys_at(0), 9, without_user=2).tolist() == [0, 1, 3]
    assert pool_of([1, 1]).nearest(keys_at(0), 1, without_user=1).tolist() == []


def test_what_is_nearest_does_not_depend_on_other_keys_asked_for():
    generator = torch_generator(0)
    users = torch.randint(9, (300,), generator=generator).tolist()
    pool = pool_of(users, torch.randint(360, (300,), generator=generator).float().tolist())
    together = set(pool.nearest(keys_at(10, 120, 250), 7, 3).tolist())
    apart = [pool.nearest(keys_at(degrees), 7, 3).tolist() for degrees in (10, 120, 250)]
    assert together == set().union(*apart)


def test_of_user_by_hand():
    pool = pool_of([2, 1, 2, 5])
    found = [pool.of_user(user).tolist() for user in (0, 1, 2, 5, NOBODY)]
    assert found == [[], [1], [0, 2], [3], []]


# What users like: 0 items 1 and 2, 1 items 1 and 3 and 4, 2 items 1 and 2, 3 nothing, 4 item 5.
LIKES = pool_of(
    users=[0, 0, 0, 1, 1, 1, 2, 2, 3, 4],
    items=[1, 2, 2, 1, 3, 4, 1, 2, 1, 5],
    labels=[1, 1, 1, 1, 1, 1, 1, 1, 0, 1],
)


def test_similar_users_by_hand():
    # Liking 1 and 2: all alike for users 0 and 2, one of four for user 1, none for the others.
    assert LIKES.similar_users(torch.tensor([1, 2, 2]), NOBODY).tolist() == [0, 2, 1]
    assert LIKES.similar_users(torch.tensor([1, 2]), without_user=0).tolist() == [2, 1]
    # Liking 1, 3 and 77, which the pool does not know: two of four for 1, one of four for 0 and 2.
    assert LIKES.similar_users(torch.tensor([1, 3, 77]), NOBODY).tolist() == [1, 0, 2]


@pytest.mark.parametrize("liked", [[], [0], [77]])
def test_nobody_is_similar_to_who_likes_nothing_of_the_pool(liked):
    liked = torch.tensor(liked, dtype=torch.long)
    assert LIKES.similar_users(liked, NOBODY).tolist() == []
    assert LIKES.of_similar_users(liked, 5, NOBODY).tolist() == []


def test_a_pool_in_which_nothing_is_liked_knows_no_similar_users():
    pool = pool_of([1, 2], labels=[0, 0])
    assert pool.similar_users(torch.tensor([0]), NOBODY).tolist() == []


def test_samples_of_similar_users_come_user_after_user():
    liked = torch.tensor([1, 2])
    assert LIKES.of_similar_users(liked, 4, NOBODY).tolist() == [0, 1, 2, 6]
    assert LIKES.of_similar_users(liked, 99, without_user=2).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_random_draw_is_the_generator_s():
    pool = pool_of([n % 7 for n in range(70)])
    first, again, other = (pool.random(20, 3, torch_generator(seed)).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(pool.random(99, 3, torch_generator(1)).tolist()) == [
        n for n in range(70) if n % 7 != 3
    ]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5), st.integers(0, 99))
def test_nothing_found_is_the_user_s_own_or_found_twice(size, each, user, seed):
    generator = torch_generator(seed)
    samples = drawn_samples(size, generator)
    pool = Pool(samples, functional.normalize(torch.randn(size, 3, generator=generator)))
    queries = functional.normalize(torch.randn(4, 3, generator=generator))
    liked = samples["item"][(samples["user"] == user) & (samples["label"] > 0)]
    others = int((samples["user"] != user).sum())
    for found, most in (
        (pool.nearest(queries, each, user), 4 * each),
        (pool.of_similar_users(liked, each, user), each),
        (pool.random(each, user, generator), each),
    ):
        assert len(found) == len(found.unique()) <= min(most, others)
        assert not (samples["user"][found] == user).any()
    assert len(pool.nearest(queries[:1], each, user)) == min(each, others)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 30), st.integers(0, 9))
def test_some_users_are_whole_and_fit(users, most, seed):
    users = torch.tensor(users)
    assume(users.bincount().max() <= most)
    rows = rows_of_some_users(users, most, torch_generator(seed))
    assert 1 <= len(rows) <= most
    assert rows.tolist() == torch.isin(users, users[rows]).nonzero().flatten().tolist()


def test_some_users_are_all_of_them_where_there_is_room():
    users = torch.tensor([4, 4, 1, 9, 1])
    assert rows_of_some_users(users, 5, torch_generator(0)).tolist() == [0, 1, 2, 3, 4]


def test_room_for_not_one_user_is_refused():
    with pytest.raises(ValueError, match="most=2: must leave room"):
        rows_of_some_users(torch.tensor([3, 3, 3]), 2, torch_generator(0))


def test_a_pool_without_samples_or_with_too_few_keys_is_refused():
    samples = small_samples()
    for size, keys in ((0, 0), (5, 4)):
        part = taken(samples, torch.arange(size))
        with pytest.raises(ValueError, match=f"{count(part)} samples and {keys} keys"):
            Pool(part, torch.ones(keys, 2))


def test_asking_for_none_a_key_is_refused():
    with pytest.raises(ValueError, match="each=0: must be 1 or more"):
        pool_of([1]).nearest(keys_at(0), 0, NOBODY)
