from __future__ import annotations

import logging

import pytest

from dccl_flower.config import ConfError
from dccl_flower.fleet.clock import Work
from dccl_flower.fleet.judge import FaultPolicy, RoundStopped
from dccl_flower.fleet.profiles import Fleet, Tier
from dccl_flower.fleet.roster import Roster, Rules
from dccl_flower.fleet.tiers import TurnCost

SECOND = Work(down_bytes=0, flops=1e9, up_bytes=0)
ANY = FaultPolicy(min_replies=0.0)


def tier(name="fast", share=1.0, flops=1e9, memory_mb=10.0, availability=1.0, drop_out=0.0):
    return Tier(name, share, flops, memory_mb, 8.0, 8.0, availability, drop_out)


def timed(tiers, num_devices=12, size=4, first=SECOND, **rules):
    fleet = Fleet(tuple(tiers), num_devices, seed=3)
    roster = Roster(num_devices, size, 3, fleet, Rules(**rules))
    roster.prepare(lambda fleet: {1.0: TurnCost(first, SECOND, 5_000_000)})
    return roster, fleet


def test_a_plain_cohort_depends_on_seed_and_round_alone():
    roster = Roster(100, 7, seed=1)
    first, second = roster.draw(1, ANY), roster.draw(2, ANY)
    assert first.devices == sorted(set(first.devices))
    assert len(first.devices) == 7
    assert first.devices != second.devices
    assert Roster(100, 7, seed=1).draw(1, ANY) == first
    assert (first.virtual_seconds, list(first.late), list(first.gone)) == (None, [], [])


@pytest.mark.parametrize("size", [0, 6])
def test_a_cohort_that_the_devices_cannot_fill_is_an_error(size):
    with pytest.raises(ValueError, match=rf"devices_per_round={size}: must lie in 1\.\.5"):
        Roster(5, size)


def test_profiles_that_nobody_notices_give_the_plain_cohort():
    roster, _ = timed([tier()])
    cohort = roster.draw(5, ANY)
    assert cohort.devices == Roster(12, 4, seed=3).draw(5, ANY).devices
    assert cohort.virtual_seconds == 1.0


def test_the_first_to_answer_count_and_the_others_are_late():
    roster, fleet = timed([tier("fast", flops=2e9), tier("slow", flops=1e9)], over_sampling=3.0)
    cohort = roster.draw(1, ANY)
    asked = sorted([*cohort.devices, *cohort.late])
    assert asked == list(range(12))
    assert [fleet.tier_of(d).name for d in cohort.devices] == ["fast"] * 4
    assert cohort.virtual_seconds == 0.5


def test_devices_that_are_not_there_are_not_asked():
    roster, fleet = timed([tier(availability=0.5)], num_devices=200, size=20)
    for server_round in (1, 2):
        cohort = roster.draw(server_round, ANY)
        assert all(fleet.is_available(device, server_round) for device in cohort.devices)
        assert len(cohort.devices) == 20


def test_fewer_than_the_cohort_are_asked_where_fewer_are_there():
    roster, fleet = timed([tier(availability=0.2)], num_devices=20, size=20)
    there = [device for device in range(20) if fleet.is_available(device, 1)]
    assert 0 < len(there) < 20
    assert roster.draw(1, ANY).devices == there


def test_a_deadline_nobody_meets_stops_the_round():
    roster, _ = timed([tier()], deadline=0.9)
    with pytest.raises(RoundStopped, match=r"0 of 4 .* within 0\.9 .*\(asked 4, late 4, gone 0\)"):
        roster.draw(1, ANY)


def test_devices_that_drop_out_are_gone_or_late():
    roster, fleet = timed([tier(drop_out=0.5)], num_devices=100, size=60)
    cohort = roster.draw(1, ANY)
    stayed = [d for d in range(100) if fleet.drops_out(d, 1) is None]
    assert set(cohort.devices) <= set(stayed)
    assert cohort.gone
    assert len({*cohort.devices, *cohort.late, *cohort.gone}) == 60


def test_what_comes_before_the_first_turn_is_paid_for_until_a_device_has_answered():
    slow = Work(down_bytes=1_000_000, flops=1e9, up_bytes=0)
    roster, _ = timed([tier()], num_devices=4, first=slow)
    assert [roster.draw(number, ANY).virtual_seconds for number in (1, 2)] == [2.0, 1.0]


def test_a_tier_without_the_memory_is_never_picked_and_the_log_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="dccl_flower"):
        roster, fleet = timed([tier("big"), tier("small", memory_mb=4.9)], size=6)
    assert "tier small has 4.9 MB and training takes 5.0 MB: never picked" in caplog.text
    names = {fleet.tier_of(d).name for r in range(1, 9) for d in roster.draw(r, ANY).devices}
    assert names == {"big"}


def test_no_tier_that_fits_is_an_error():
    with pytest.raises(ConfError, match=r"largest has 4 MB and training takes at least 5\.0 MB"):
        timed([tier("a", memory_mb=4.0), tier("b", memory_mb=1.0)])
