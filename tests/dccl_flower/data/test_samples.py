from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_logs import small_log

from dccl_flower.data.interactions import PAST, RECENT, TEST
from dccl_flower.data.samples import count, joined, samples_of, taken

ROWS = [
    (0, 1, 1, 10, PAST),
    (0, 2, 0, 20, RECENT),
    (0, 3, 1, 20, RECENT),
    (0, 4, 1, 30, RECENT),
    (0, 1, 1, 40, TEST),
    (2, 8, 0, 5, PAST),
    (2, 0, 1, 60, PAST),
]


def test_histories_by_hand():
    samples = samples_of(small_log(ROWS), np.arange(len(ROWS)), 2)
    assert samples["history"].tolist() == [
        [-1, -1],
        [-1, 1],
        [-1, 1],  # nothing of its own time
        [1, 3],
        [3, 4],  # 1 is too long ago
        [-1, -1],  # nothing of another user
        [-1, -1],  # nothing disliked
    ]


def test_all_keys_have_their_shapes_and_types():
    profiles = np.array([[0, 4], [1, 0], [1, 2]], np.int16)
    samples = samples_of(small_log(ROWS, profiles=profiles), np.array([6, 0]), 3)
    assert samples["user"].tolist() == [2, 0]
    assert samples["item"].tolist() == [0, 1]
    assert samples["profile"].tolist() == [[1, 2], [0, 4]]
    assert samples["label"].tolist() == [1.0, 1.0]
    assert samples["label"].dtype == torch.float32
    assert {samples[key].dtype for key in ("user", "item", "history", "profile")} == {torch.int64}


def test_no_rows_and_no_likes_are_no_trouble():
    samples = samples_of(small_log(ROWS), np.array([], dtype=np.int64), 4)
    assert count(samples) == 0
    assert samples["history"].shape == (0, 4)
    assert samples["profile"].shape == (0, 0)
    disliked = small_log([(0, 1, 0, 1, PAST), (0, 2, 0, 2, PAST)])
    assert samples_of(disliked, np.array([1]), 2)["history"].tolist() == [[-1, -1]]


def test_parts_are_taken_and_joined():
    samples = samples_of(small_log(ROWS), np.arange(4), 2)
    again = joined([taken(samples, torch.tensor([0, 1])), taken(samples, torch.tensor([2, 3]))])
    assert count(again) == 4
    assert all(again[key].equal(samples[key]) for key in samples)
    mask = samples["label"] == 0
    assert taken(samples, mask)["item"].tolist() == [2]


a_row = st.tuples(st.integers(0, 2), st.integers(0, 8), st.integers(0, 1), st.integers(0, 6))


@settings(deadline=None, max_examples=60)
@given(st.lists(a_row, max_size=25), st.integers(1, 4))
def test_histories_are_what_a_loop_over_rows_finds(rows, length):
    rows = sorted(rows, key=lambda row: (row[0], row[3]))
    log = small_log([(*row, PAST) for row in rows])
    found = samples_of(log, np.arange(len(rows)), length)["history"].tolist()
    for (user, _, _, time), history in zip(rows, found, strict=True):
        before = [i for u, i, liked, t in rows if u == user and liked and t < time][-length:]
        assert history == [-1] * (length - len(before)) + before
