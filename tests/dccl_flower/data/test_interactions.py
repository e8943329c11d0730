from __future__ import annotations

import numpy as np
import pytest
from small_logs import small_log

from dccl_flower.data.interactions import PAST, RECENT, TEST

ROWS = [
    (0, 1, 1, 10, PAST),
    (0, 2, 0, 20, RECENT),
    (0, 3, 1, 20, RECENT),
    (0, 1, 1, 30, TEST),
    (2, 8, 0, 5, PAST),
    (2, 0, 1, 6, PAST),
]


def test_rows_are_found_by_user_and_part():
    log = small_log(ROWS)
    assert log.rows_of(0).tolist() == [0, 1, 2, 3]
    assert [log.rows_of(0, part).tolist() for part in (PAST, RECENT, TEST)] == [[0], [1, 2], [3]]
    assert log.rows_in(PAST).tolist() == [0, 4, 5]


def test_a_user_may_have_no_rows_or_none_of_a_part():
    log = small_log(ROWS)
    assert log.rows_of(1).tolist() == log.rows_of(1, TEST).tolist() == []
    assert log.rows_of(2, TEST).tolist() == []
    assert log.rows_of(2, PAST).tolist() == [4, 5]


def test_sizes_are_counted_by_column():
    profiles = np.array([[0, 4], [1, 0], [1, 2]], np.int16)
    log = small_log(ROWS, profiles=profiles)
    assert (log.num_users, log.num_items) == (3, 9)
    assert (log.profile_sizes, log.feature_sizes) == ((2, 5), ())


def test_an_empty_log_has_users_without_rows():
    log = small_log([])
    assert log.rows_of(2).tolist() == log.rows_in(TEST).tolist() == []
    assert log.activity_deciles(np.array([0, 1])).tolist() == [1, 6]


def test_deciles_count_rows_before_the_test_among_the_users_given():
    # User u has u rows, and user 0 many test rows.
    rows = [(0, 1, 1, time, TEST) for time in range(50)]
    rows += [(user, 1, 1, time, PAST) for user in range(1, 20) for time in range(user)]
    log = small_log(rows, num_users=20)
    assert log.activity_deciles(np.arange(20)).tolist() == [u // 2 + 1 for u in range(20)]
    assert log.activity_deciles(np.array([19, 3])).tolist() == [6, 1]


def test_equally_active_users_keep_their_order():
    log = small_log([(user, 1, 1, 0, PAST) for user in range(10)], num_users=10)
    assert log.activity_deciles(np.arange(10)[::-1]).tolist() == list(range(1, 11))
    assert log.activity_deciles(np.array([], dtype=int)).tolist() == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, 0, 1, 0, PAST), (0, 0, 1, 5, PAST)),
        ((0, 0, 1, 5, PAST), (0, 0, 1, 4, PAST)),
        ((0, 0, 1, 5, RECENT), (0, 0, 1, 6, PAST)),
    ],
)
def test_rows_out_of_order_are_refused(first, second):
    with pytest.raises(ValueError, match="sorted by user, then time"):
        small_log([first, second])
