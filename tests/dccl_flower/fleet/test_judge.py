from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from dccl_flower.config_loading import load_conf
from dccl_flower.faults import BadAnswer, Fault
from dccl_flower.fleet.judge import FaultPolicy, Judge, RoundStopped
from dccl_flower.method import Answer, Ask, Numbers

RAISED = Fault("raised", "device 1: MemoryError: no message", [1])
LOST = Fault("lost", "device 2 does not hold blob 12ab", [2])
STRANGER = Fault("stranger", "device 9 answered without being asked")
SILENT = Fault("silent", "devices 3, 4 did not answer", [3, 4])


@dataclass(frozen=True)
class Turn:
    lr: float = 0.5


@dataclass(frozen=True)
class OtherTurn:
    lr: float = 0.5


def judge(**policy):
    return Judge(FaultPolicy(**policy))


def check(by, value=0.0, count=5, turn=Turn, like=None, device=3):
    state = {"w": torch.full((4,), value)}
    ask = Ask({"w": torch.ones(4)}, turn(), like=like)
    by.check(ask, Answer(device, state, count), {device: count}, f"device {device}")


@pytest.mark.parametrize(
    ("min_replies", "asked", "answered", "goes_on"),
    [
        (1.0, 4, 4, True),
        (1.0, 4, 3, False),
        (0.75, 4, 3, True),
        (0.75, 4, 2, False),
        (0.0, 4, 1, True),
        (0.0, 4, 0, False),  # a round needs somebody
    ],
)
def test_a_round_goes_on_by_the_share_of_those_who_answered(min_replies, asked, answered, goes_on):
    assert FaultPolicy(min_replies).is_enough(answered, asked) is goes_on


def test_the_policy_is_that_of_the_configuration():
    changes = ["min_replies=0.5", "timeout=9", "on_failure=stop", "max_norm=2"]
    conf = load_conf("digits", [f"rounds.{change}" for change in changes])
    assert FaultPolicy.of(conf.rounds) == FaultPolicy(0.5, 9.0, "stop", 2.0)
    assert FaultPolicy.of(load_conf("digits").rounds) == FaultPolicy()


def test_where_enough_answered_each_fault_is_a_line_and_a_count(caplog):
    by = judge(min_replies=0.5)
    by.settle(7, [RAISED, SILENT], 3, 6)
    assert caplog.messages == [
        "round 7: raised: device 1: MemoryError: no message; the round goes on without",
        "round 7: silent: devices 3, 4 did not answer; the round goes on without",
    ]
    assert by.close_round() == {"raised": 1, "silent": 2}
    assert by.close_round() == {}


def test_too_few_answers_stop_the_round_and_name_the_first_fault():
    with pytest.raises(RoundStopped) as caught:
        judge().settle(7, [RAISED, SILENT, STRANGER, SILENT], 3, 6)
    assert str(caught.value) == (
        "round 7: 3 of 6 devices answered, rounds.min_replies=1 asks for more, silent 2 more, "
        "stranger 1 more; raised: device 1: MemoryError: no message"
    )


def test_a_policy_that_stops_does_so_at_any_fault():
    with pytest.raises(RoundStopped, match=r"6 of 6 .*, rounds\.on_failure=stop; stranger: "):
        judge(on_failure="stop").settle(1, [STRANGER], 6, 6)
    judge(on_failure="stop").settle(1, [], 6, 6)


def test_who_is_asked_again_follows_the_policy_but_what_was_lost_is_sent_again():
    faults = [RAISED, LOST, STRANGER]
    assert judge(on_failure="ask_again").to_ask_again(faults, []) == [RAISED, LOST]
    assert judge(on_failure="ask_again").to_ask_again(faults, [1]) == [LOST]
    assert judge().to_ask_again(faults, []) == [LOST]
    assert judge(on_failure="stop").to_ask_again(faults, []) == []
    assert judge(on_failure="stop").to_ask_again([LOST], []) == [LOST]


def test_many_times_the_samples_told_before_are_not_plausible():
    by = judge()
    check(by, count=5)
    check(by, count=500)
    with pytest.raises(BadAnswer, match=r"^device 3 replied with num-examples=50001, and 500 bef"):
        check(by, count=50_001)
    check(by, count=50_000)
    check(judge(), count=50_001)
    check(by, count=10**9, device=4)
    check(by, count=10**9, turn=OtherTurn)


def test_an_update_is_bounded_where_the_policy_says_so():
    check(judge(), 1e6)
    check(judge(max_norm=2.0), 2.0)  # four numbers, each moved by one
    with pytest.raises(BadAnswer, match=r"norm 2\.002: rounds\.max_norm=2$"):
        check(judge(max_norm=2.0), 2.001)
    check(judge(max_norm=2.0), 1.0, like={"w": torch.zeros(4)})
    with pytest.raises(BadAnswer, match=r"norm 2\.002"):
        check(judge(max_norm=2.0), 1.001, like={"w": torch.zeros(4)})


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (None, "device 3 did not tell its counts"),
        ([1.0, 2.0], "device 3 replied with 2 values of 'counts', expected 3"),
        (3.0, "device 3 replied with 1 values of 'counts', expected 3"),
        ([1.0, 2.0, float("nan")], "device 3 replied with a value in 'counts' that is not finite"),
        ([float("inf"), 2.0, 3.0], "device 3 replied with a value in 'counts' that is not finite"),
    ],
)
def test_numbers_beside_a_state_are_as_many_as_asked_and_finite(told, line):
    ask = Ask({}, Turn(), like={}, wants={"counts": Numbers(3, may_lack=1)})

    def check_told(told):
        beside = {} if told is None else {"counts": torch.tensor(told)}
        judge().check(ask, Answer(3, {}, 5, {}, beside), {3: 5}, "device 3")

    with pytest.raises(BadAnswer) as caught:
        check_told(told)
    assert str(caught.value) == line
    check_told([float("nan"), 2.0, 3.0])
