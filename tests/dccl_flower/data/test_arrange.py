from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.data.arrange import Found, arrange, in_core
from dccl_flower.data.interactions import PAST, TEST
from dccl_flower.interaction_config import LogDataConf, LogSplitConf

ROWS = [
    ("zoe", "tea", 5.0, 30),
    ("ann", "tea", 3.0, 20),
    ("zoe", "jam", 2.0, 10),
    ("ann", "bun", 4.0, 40),
    ("ann", "jam", 4.5, 10),
]


def arranged(rows=ROWS, ratings=True, tables=None, seed=0, **conf):
    users, items, stars, times = zip(*rows, strict=True) if rows else [()] * 4
    found = Found(
        "data.path=x", users, items, np.array(stars) if ratings else None, times, **(tables or {})
    )
    conf.setdefault("split", LogSplitConf(test_from=40, recent_from=30))
    return arrange(found, LogDataConf(**{"name": "movielens", **conf}), seed)


def rows_of(log):
    columns = (log.users, log.items, log.labels, log.times, log.parts)
    return list(zip(*(column.tolist() for column in columns), strict=True))


# ann is 0, zoe 1; bun is 0, jam 1, tea 2.
ARRANGED = [
    (0, 1, 1, 10, 0),
    (0, 2, 0, 20, 0),
    (0, 0, 1, 40, 2),
    (1, 1, 0, 10, 0),
    (1, 2, 1, 30, 1),
]


def test_unsorted_rows_come_out_sorted_with_codes_for_ids():
    log = arranged()
    assert rows_of(log) == ARRANGED
    assert log.users.dtype == log.items.dtype == np.int32
    assert (log.labels.dtype, log.times.dtype, log.parts.dtype) == (np.uint8, np.int64, np.uint8)
    assert (log.num_users, log.num_items) == (2, 3)


@settings(deadline=None, max_examples=30)
@given(st.permutations(ROWS))
def test_the_order_of_rows_says_nothing(rows):
    assert rows_of(arranged(rows)) == ARRANGED


def test_ids_may_be_numbers_or_a_column_of_a_table():
    ids = {"zoe": 10, "ann": 9}
    assert rows_of(arranged([(ids[row[0]], *row[1:]) for row in ROWS])) == ARRANGED
    users, items, stars, times = zip(*ROWS, strict=True)
    columns = [pa.chunked_array([column[:2], column[2:]]) for column in (users, items)]
    found = Found("data.path=x", *columns, np.array(stars), times)
    split = LogSplitConf(test_from=40, recent_from=30)
    assert rows_of(arrange(found, LogDataConf("movielens", split=split), 0)) == ARRANGED


def test_the_first_of_duplicates_stays_and_the_others_are_counted(caplog):
    again = [("zoe", "tea", 1.0, 30), ("ann", "bun", 4.0, 40), ("zoe", "tea", 1.0, 30)]
    with caplog.at_level(logging.INFO, "dccl_flower"):
        assert rows_of(arranged(ROWS + again)) == ARRANGED
    (message,) = caplog.messages
    assert message == "3 rows of the same user, item and time as another were dropped"
    caplog.clear()
    met_again = ("zoe", "tea", 5.0, 31)
    assert len(arranged([*ROWS, met_again]).users) == 6
    assert not caplog.messages


def test_a_core_is_what_is_left_in_the_end():
    # Item 2 has one row; without it user 1 has one, and without that item 1 has one.
    users, items = np.array([0, 0, 1, 1, 2, 2, 0]), np.array([0, 3, 1, 2, 0, 3, 1])
    assert in_core(users, items, 2).tolist() == [True, True, False, False, True, True, False]
    assert in_core(users, items, 1).all()
    assert not in_core(users, items, 3).any()


def test_users_and_items_out_of_the_core_get_no_code():
    log = arranged([*ROWS, ("bob", "nut", 5.0, 40)], k_core=2, split=LogSplitConf(test_from=30))
    assert (log.num_users, log.num_items) == (2, 2)
    assert log.times.tolist() == [10, 20, 10, 30]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40), st.integers(1, 4))
def test_a_core_has_k_rows_each_and_is_the_largest(rows, k):
    pairs = np.array(rows, dtype=int).reshape(-1, 2).T
    kept = [row for row, stays in zip(rows, in_core(*pairs, k), strict=True) if stays]
    assert all(n >= k for column in zip(*kept, strict=True) for n in Counter(column).values())
    left = rows
    while True:
        users, items = Counter(u for u, _ in left), Counter(i for _, i in left)
        fewer = [(u, i) for u, i in left if users[u] >= k and items[i] >= k]
        if len(fewer) == len(left):
            break
        left = fewer
    assert sorted(kept) == sorted(left)


def test_items_that_are_new_in_the_test_and_users_without_test_are_kept():
    log = arranged()
    new = set(log.items[log.parts == TEST]) - set(log.items[log.parts != TEST])
    assert new == {0}
    assert log.rows_of(1, TEST).tolist() == []


def test_the_threshold_makes_labels_of_ratings():
    assert arranged(threshold=4.5).labels.tolist() == [1, 0, 0, 0, 1]
    assert arranged(threshold=0.0).labels.tolist() == [1] * 5  # of one value only: allowed


def test_a_table_has_labels_or_a_threshold():
    liked = [(*row[:2], float(row[2] >= 4), row[3]) for row in ROWS]
    assert rows_of(arranged(liked, name="table")) == ARRANGED
    assert rows_of(arranged(name="table", threshold=4.0)) == ARRANGED
    with pytest.raises(ConfError) as caught:
        arranged(name="table")
    said = "data.label_column=label: holds 5, which is no label of 0 or 1; give data.threshold"
    assert str(caught.value) == said


def test_negatives_are_of_the_same_time_and_part_and_new_to_the_user():
    rows = [(user, item, 1.0, user + item) for user in range(9) for item in range(user, user + 5)]
    split = LogSplitConf("last_out", recent=0.25)
    log = arranged(rows, ratings=False, implicit=True, negatives=3, split=split)
    assert len(log.users) == 4 * len(rows)
    for user in range(9):
        mine = log.rows_of(user)
        liked = mine[log.labels[mine] == 1]
        drawn = mine[log.labels[mine] == 0]
        assert log.items[liked].tolist() == list(range(user, user + 5))
        assert not set(log.items[drawn]) & set(log.items[liked])
        for column in (log.times, log.parts):
            assert Counter(column[drawn]) == {k: 3 * n for k, n in Counter(column[liked]).items()}
    other = arranged(rows, ratings=False, implicit=True, negatives=3, split=split, seed=1)
    assert (log.items != other.items).any()


def test_popular_items_are_drawn_more_often():
    rows = [(user, 0, 1.0, user) for user in range(300)] + [(999, item, 1.0, 5) for item in (1, 2)]
    rows += [(user, 1, 1.0, user) for user in range(300, 350)]
    conf = {"implicit": True, "negatives": 1, "split": LogSplitConf(test=0.5, recent=0.0)}
    popular = arranged(rows, ratings=False, negatives_by="popularity", **conf)
    evenly = arranged(rows, ratings=False, negatives_by="uniform", **conf)
    shares = [(log.items[log.labels == 0] == 2).mean() for log in (popular, evenly)]
    assert shares[0] < 0.1 < 0.4 < shares[1]


def test_more_negatives_than_there_are_items_are_refused():
    with pytest.raises(ConfError) as caught:
        arranged(implicit=True, negatives=1)
    assert str(caught.value) == "data.negatives=1: there is a user who never met only 0 of 3 items"


def test_implicit_rows_without_negatives_are_all_liked():
    assert arranged(implicit=True, negatives=0).labels.tolist() == [1] * 5


def test_codes_of_users_and_items_follow_them_and_0_is_not_known():
    tables = {"profiles": {"zoe": (2, 1), "eve": (7, 7)}, "features": {"tea": (3,), "bun": (1,)}}
    log = arranged(tables=tables)
    assert log.profiles.tolist() == [[0, 0], [2, 1]]
    assert log.features.tolist() == [[1], [0], [3]]
    assert log.profile_sizes == (3, 2)
    assert arranged().profiles.shape == (2, 0)


def test_nothing_left_is_refused():
    with pytest.raises(ConfError, match=r"^data.k_core=9: leaves none of 5 rows$"):
        arranged(k_core=9)
    with pytest.raises(ConfError, match=r"^data.path=x: holds no rows$"):
        arranged([])


def test_one_row_of_a_user_is_scored_and_never_learnt_from():
    rows = [*ROWS, ("bob", "tea", 5.0, 1)]
    log = arranged(rows, split=LogSplitConf("last_out"))
    assert log.parts[log.rows_of(1)].tolist() == [TEST]
    assert (log.parts == PAST).any()
