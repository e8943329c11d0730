from __future__ import annotations

import pytest

from dccl_flower.fleet.faults import Fault, FaultPolicy, Verdict

LOST = Fault(7, "lost its parcel", lost=True)
FAILED = Fault(8, "out of memory")


@pytest.mark.parametrize(
    ("min_replies", "asked", "answered", "faults", "verdict"),
    [
        (1.0, 4, 4, [], Verdict.GO),
        (1.0, 4, 3, [FAILED], Verdict.STOP),
        (0.75, 4, 3, [FAILED], Verdict.GO),
        (0.75, 4, 2, [], Verdict.STOP),
        (0.0, 4, 1, [], Verdict.GO),
        (0.0, 4, 0, [], Verdict.STOP),  # a round needs somebody
        (0.0, 4, 3, [FAILED, LOST], Verdict.ASK_AGAIN),
        (1.0, 4, 0, [LOST], Verdict.ASK_AGAIN),
    ],
)
def test_a_round_goes_on_by_the_share_of_those_who_answered(
    min_replies, asked, answered, faults, verdict
):
    policy = FaultPolicy(min_replies)
    assert policy.judge(range(asked), range(answered), faults) is verdict
