from __future__ import annotations

import numpy as np
import pytest

from dccl_flower.config import ConfError
from dccl_flower.data.interactions import PAST, RECENT, TEST
from dccl_flower.data.log_split import parts_of
from dccl_flower.interaction_config import LogSplitConf

USERS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
TIMES = np.array([0, 1, 2, 3, 8, 9, 4, 5, 6, 7])


def parts(users=USERS, times=TIMES, **conf):
    return parts_of(users, times, LogSplitConf(**conf)).tolist()


def test_by_time_the_last_rows_of_all_count():
    # TEST from 9, RECENT from 7.
    assert parts() == [PAST, PAST, PAST, PAST, RECENT, TEST, PAST, PAST, PAST, RECENT]
    assert parts(recent=0.0) == [PAST] * 5 + [TEST] + [PAST] * 4


def test_by_given_moments():
    found = parts(recent_from=3, test_from=6)
    assert found == [PAST, PAST, PAST, RECENT, TEST, TEST, RECENT, RECENT, TEST, TEST]


def test_one_moment_stays_together():
    assert parts(times=np.array([0, 1, 2, 3, 9, 9, 4, 9, 9, 9]))[4:] == [2, 2, 0, 2, 2, 2]


def test_last_out_counts_by_user():
    found = parts(by="last_out", recent=0.4)
    assert found == [PAST, PAST, PAST, RECENT, RECENT, TEST, PAST, PAST, RECENT, TEST]
    found = parts(by="last_out", recent=0.0, last=3)
    assert found == [PAST] * 3 + [TEST] * 3 + [PAST] + [TEST] * 3


def test_a_user_with_too_few_rows_is_only_scored():
    users = np.array([0, 0, 0, 1, 2, 2])
    found = parts(users, np.arange(6), by="last_out", recent=0.5, last=2)
    assert found == [PAST, TEST, TEST, TEST, TEST, TEST]


@pytest.mark.parametrize(
    ("conf", "missing"),
    [
        ({"recent": 0.9}, "past"),
        ({"recent": 0.95, "test": 0.95}, "past"),
        ({"recent_from": -1}, "past"),
        ({"test_from": 100}, "test"),
        ({"by": "last_out", "last": 6}, "past"),
    ],
)
def test_a_part_that_is_needed_may_not_be_empty(conf, missing):
    with pytest.raises(ConfError) as caught:
        parts(**conf)
    by = conf.get("by", "time")
    assert str(caught.value) == f"data.split.by={by}: leaves no {missing} rows of 10"
