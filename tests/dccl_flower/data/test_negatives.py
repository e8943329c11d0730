from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.data.negatives import draw_negatives


def drawn(users, items, count, weights, seed=0):
    weights = np.asarray(weights, dtype=np.float64)
    return draw_negatives(
        np.array(users), np.array(items), count, weights, np.random.default_rng(seed)
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1), st.integers(0, 3))
def test_what_is_drawn_is_new_to_the_user_and_not_twice_in_a_row(rows, seed):
    users, items = zip(*rows, strict=True)
    found = drawn(users, items, 3, np.ones(8), seed)
    assert found.shape == (len(rows), 3)
    assert found.min() >= 0
    for user, row in zip(users, found.tolist(), strict=True):
        assert len(set(row)) == 3
        assert not set(row) & {item for owner, item in rows if owner == user}


def test_items_are_drawn_as_often_as_their_weights_say():
    found = drawn(np.zeros(4000, int), np.zeros(4000, int), 1, [5, 1, 3])
    assert (found == 1).mean() == pytest.approx(1 / 4, abs=0.03)


def test_an_item_that_is_hardly_ever_drawn_is_found_where_it_alone_is_left():
    users, items = [0, 0, 1], [0, 1, 0]
    assert drawn(users, items, 1, [1e9, 1e9, 1e-9]).ravel().tolist() == [2, 2, 1]


def test_the_seed_decides():
    rows = [0] * 50, [0] * 50
    assert (drawn(*rows, 2, np.ones(9)) == drawn(*rows, 2, np.ones(9))).all()
    assert (drawn(*rows, 2, np.ones(9)) != drawn(*rows, 2, np.ones(9), seed=1)).any()


def test_a_user_who_met_too_many_items_is_refused():
    with pytest.raises(ValueError, match="never met only 1 of 3 items"):
        drawn([0, 0, 1], [0, 1, 0], 2, np.ones(3))
