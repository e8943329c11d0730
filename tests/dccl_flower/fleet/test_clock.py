import math
import subprocess
import sys
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dccl_flower.fleet.clock import Cohort, Turn, Work, close_round, over_sampled, turn
from dccl_flower.fleet.profiles import Tier

# Three devices do the same work: 1 MB (8 Mbit) down, 12 GFLOP, 0.5 MB (4 Mbit) up.
#
#          down_mbps   download   flops   training   up_mbps   upload   answer in after
# fast     8           1 s        6e9     2 s        4         1 s      4 s
# middle   4           2 s        3e9     4 s        2         2 s      8 s
# slow     1           8 s        1e9     12 s       1         4 s      24 s
WORK = Work(down_bytes=1_000_000, flops=12e9, up_bytes=500_000)
FAST = Tier("fast", 1, 6e9, 500, 8, 4, 1, 0)
MIDDLE = Tier("middle", 1, 3e9, 500, 4, 2, 1, 0)
SLOW = Tier("slow", 1, 1e9, 500, 1, 1, 1, 0)
# Device 2 is the fast one, 0 the middle one and 1 the slow one.
TURNS = [Turn(2, 1, 2, 1), Turn(0, 2, 4, 2), Turn(1, 8, 12, 4)]


def gone(one, share):
    return replace(one, gone_after=share * one.arrival)


def ended(seconds, arrived, late, gone):
    return Cohort(arrived, seconds, late, gone)


def answer(device, seconds):
    return Turn(device, 0.0, seconds, 0.0)


def test_a_turn_is_download_training_and_upload():
    turns = [turn(device, tier, WORK) for device, tier in ((2, FAST), (0, MIDDLE), (1, SLOW))]
    assert turns == [Turn(2, 1, 2, 1), Turn(0, 2, 4, 2), Turn(1, 8, 12, 4)]
    assert [one.arrival for one in turns] == [4, 8, 24]


def test_a_device_that_drops_out_is_gone_after_its_share_of_the_turn():
    # A quarter of 24 s, before the download of 8 s is through.
    assert turn(1, SLOW, WORK, drop_share=0.25) == Turn(1, 8, 12, 4, gone_after=6)
    assert turn(1, SLOW, WORK, drop_share=0).gone_after == 0


@pytest.mark.parametrize(
    ("wanted", "deadline", "outcome"),
    [
        # Everybody is waited for: 24 s.
        (3, None, ended(24, [0, 1, 2], [], [])),
        # The first two: the second answer is in after 8 s.
        (2, None, ended(8, [0, 2], [1], [])),
        (1, None, ended(4, [2], [0, 1], [])),
        # More wanted than there are: as many as there are.
        (9, None, ended(24, [0, 1, 2], [], [])),
        # A deadline between the second and the third answer.
        (3, 10, ended(10, [0, 2], [1], [])),
        # An answer right at the deadline counts.
        (3, 8, ended(8, [0, 2], [1], [])),
        # Those wanted are in before the deadline.
        (2, 10, ended(8, [0, 2], [1], [])),
        # Nobody meets it.
        (3, 3.5, ended(3.5, [], [0, 1, 2], [])),
    ],
)
def test_a_round_of_three_devices(wanted, deadline, outcome):
    assert close_round(TURNS, wanted, deadline) == outcome


@pytest.mark.parametrize(
    ("turns", "wanted", "deadline", "outcome"),
    [
        # The slow one goes after 12 of its 24 s: the server waits for it until then.
        ([TURNS[0], TURNS[1], gone(TURNS[2], 0.5)], 3, None, ended(12, [0, 2], [], [1])),
        # So also where the deadline is later, and no longer than the deadline.
        ([TURNS[0], TURNS[1], gone(TURNS[2], 0.5)], 3, 20, ended(12, [0, 2], [], [1])),
        ([TURNS[0], TURNS[1], gone(TURNS[2], 0.5)], 3, 9, ended(9, [0, 2], [1], [])),
        # It goes after 1.2 s, and the last of the others answers after 8 s.
        ([TURNS[0], TURNS[1], gone(TURNS[2], 0.05)], 3, None, ended(8, [0, 2], [], [1])),
        # The fast one goes: the two wanted are the others.
        ([gone(TURNS[0], 0.5), TURNS[1], TURNS[2]], 2, None, ended(24, [0, 1], [], [2])),
        # The two wanted are in after 8 s, when the slow one has not gone yet: it is late.
        ([TURNS[0], TURNS[1], gone(TURNS[2], 0.5)], 2, None, ended(8, [0, 2], [1], [])),
        # All go, after 2, 4 and 12 s.
        ([gone(t, 0.5) for t in TURNS], 2, None, ended(12, [], [], [0, 1, 2])),
        ([gone(t, 0.5) for t in TURNS], 2, 5, ended(5, [], [1], [0, 2])),
        # Nobody was there.
        ([], 1, 5, ended(0, [], [], [])),
    ],
)
def test_rounds_in_which_devices_go(turns, wanted, deadline, outcome):
    assert close_round(turns, wanted, deadline) == outcome


def test_of_answers_at_the_same_time_the_lower_device_counts():
    turns = [answer(device, 5.0) for device in (7, 3, 11, 5)]
    assert close_round(turns, 2, None) == ended(5, [3, 5], [7, 11], [])


@st.composite
def rounds(draw):
    devices = draw(st.lists(st.integers(0, 50), unique=True, max_size=8))
    parts = st.integers(0, 20).map(float)
    share = st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])
    turns = []
    for device in devices:
        one = Turn(device, draw(parts), draw(parts), draw(parts))
        dropped = draw(share)
        turns.append(one if dropped is None else gone(one, dropped))
    return turns, draw(st.integers(1, 10))


DEADLINES = st.none() | st.floats(0.5, 80)


@given(rounds(), DEADLINES)
def test_each_device_arrives_or_is_late_or_gone(drawn, deadline):
    turns, wanted = drawn
    outcome = close_round(turns, wanted, deadline)
    parts = [outcome.devices, outcome.late, outcome.gone]
    assert sorted(chain(*parts)) == sorted(t.device for t in turns)
    assert parts == [sorted(part) for part in parts]
    assert len(outcome.devices) <= wanted


@given(rounds(), DEADLINES)
def test_nothing_happens_after_the_end(drawn, deadline):
    turns, wanted = drawn
    outcome = close_round(turns, wanted, deadline)
    by_device = {t.device: t for t in turns}
    assert all(by_device[d].gone_after is None for d in outcome.devices)
    assert all(by_device[d].arrival <= outcome.virtual_seconds for d in outcome.devices)
    assert all(by_device[d].gone_after <= outcome.virtual_seconds for d in outcome.gone)
    assert outcome.virtual_seconds <= (math.inf if deadline is None else deadline)


@given(rounds(), DEADLINES)
def test_no_late_device_was_before_one_that_counts(drawn, deadline):
    turns, wanted = drawn
    outcome = close_round(turns, wanted, deadline)
    order = {t.device: (t.arrival, t.device) for t in turns}
    stayed = [t.device for t in turns if t.gone_after is None]
    late = [order[d] for d in outcome.late if d in stayed]
    assert all(order[a] < one for a in outcome.devices for one in late)
    if len(outcome.devices) < wanted:
        assert all(when > outcome.virtual_seconds for when, _ in late)


@given(rounds(), st.floats(0.5, 80), st.floats(0, 40))
def test_a_later_deadline_loses_nobody(drawn, deadline, more):
    turns, wanted = drawn
    early, late, open_end = (
        close_round(turns, wanted, d) for d in (deadline, deadline + more, None)
    )
    assert set(early.devices) <= set(late.devices) <= set(open_end.devices)
    assert early.virtual_seconds <= late.virtual_seconds <= open_end.virtual_seconds


@given(rounds(), DEADLINES)
def test_the_order_of_turns_does_not_matter(drawn, deadline):
    turns, wanted = drawn
    assert close_round(turns, wanted, deadline) == close_round(turns[::-1], wanted, deadline)


@pytest.mark.parametrize(
    ("turns", "wanted", "deadline", "message"),
    [
        (TURNS, 0, None, "wanted=0: must be at least 1"),
        (TURNS, 1, 0, "deadline=0: must be positive and finite"),
        (TURNS, 1, -1.0, "deadline=-1.0: must be positive and finite"),
        (TURNS, 1, math.nan, "deadline=nan: must be positive and finite"),
        (TURNS, 1, math.inf, "deadline=inf: must be positive and finite"),
        ([TURNS[0], TURNS[0]], 1, None, "a device has two turns in one round"),
    ],
)
def test_a_round_that_cannot_be_is_refused(turns, wanted, deadline, message):
    with pytest.raises(ValueError, match=message):
        close_round(turns, wanted, deadline)


@pytest.mark.parametrize("key", ["down_bytes", "flops", "up_bytes"])
def test_negative_work_is_refused(key):
    with pytest.raises(ValueError, match=rf"{key}=-1.*must not be negative"):
        turn(0, FAST, replace(WORK, **{key: -1}))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_of_a_turn_lies_between_0_and_1(share):
    with pytest.raises(ValueError, match=r"drop_share=.*must lie between 0 and 1"):
        turn(0, FAST, WORK, share)


@pytest.mark.parametrize(
    ("cohort", "factor", "asked"),
    # 10 times the float 1.1 is 11.000000000000002.
    [(10, 1.0, 10), (10, 1.1, 11), (10, 1.3, 13), (10, 1.31, 14), (3, 1.5, 5), (1, 2, 2)],
)
def test_over_sampling_rounds_up(cohort, factor, asked):
    assert over_sampled(cohort, factor) == asked


@given(st.integers(1, 100_000), st.floats(0, 100))
def test_over_sampling_asks_for_a_cohort_at_least(cohort, factor):
    asked = over_sampled(cohort, factor)
    assert asked >= cohort
    assert asked == cohort or asked - 1 < cohort * factor * (1 + 1e-12)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_over_sampling_is_finite(factor):
    with pytest.raises(ValueError, match=str(factor)):
        over_sampled(10, factor)


def test_the_clock_loads_without_torch_and_flower():
    code = "import sys, dccl_flower.fleet.clock; print({'torch', 'flwr'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
