from __future__ import annotations

import pytest
import torch
from flwr.serverapp.exception import AggregationError
from tiny import run_tiny, tiny_strategy

from dccl_flower.checkpoint import to_bytes
from dccl_flower.config import ConfError
from dccl_flower.fleet.profiles import Fleet, Tier
from dccl_flower.fleet.roster import Rules
from dccl_flower.image_config import TwoSidedRoundsConf as RoundsConf

ROUNDS = RoundsConf(count=3, local_steps=4, lr=0.05, min_replies=0.25)


def tier(name="phone", share=1.0, **changes):
    facts = {"flops": 1e6, "memory_mb": 1, "down_mbps": 1, "up_mbps": 1}
    return Tier(name, share, **{**facts, "availability": 1.0, "drop_out": 0.0, **changes})


def fleet(*tiers):
    return Fleet(tiers or (tier(),), 5, seed=0)


def train_messages(grid):
    return [m for m in grid.sent if m.metadata.message_type == "train"]


def test_a_fleet_of_one_reliable_tier_changes_no_number(tmp_path):
    plain = run_tiny(tmp_path / "0")
    timed = run_tiny(tmp_path / "1", fleet=fleet())
    assert torch.equal(
        torch.from_numpy(plain[2].arrays["0"].numpy()),
        torch.from_numpy(timed[2].arrays["0"].numpy()),
    )
    assert plain[0].cohort.virtual_seconds is None
    assert timed[0].cohort.virtual_seconds > 0


def test_only_those_that_answer_in_time_train_and_the_others_cost_bytes(tmp_path):
    slow, fast = tier("slow", flops=1e3), tier("fast")
    strategy, grid, _ = run_tiny(
        tmp_path, fleet=fleet(slow, fast), rules=Rules(deadline=5.0), rounds=ROUNDS, num_rounds=1
    )
    trained = [m.content["config"]["device"] for m in train_messages(grid)]
    assert trained == strategy.cohort.devices
    assert strategy.cohort.late
    assert len(trained) + len(strategy.cohort.late) == 5
    totals = strategy.ledger.totals
    assert totals["co_down"] == 5 * train_messages(grid)[0].content["arrays"].count_bytes()
    assert totals["co_up"] == totals["co_down"] * len(trained) // 5
    assert totals["mimic_down"] == 5 * len(to_bytes(strategy.cloud.control_states()["mimic"]))


def test_a_deadline_nobody_meets_ends_the_run_with_one_clear_line(tmp_path):
    with pytest.raises(AggregationError) as error:
        run_tiny(tmp_path, fleet=fleet(), rules=Rules(deadline=1e-3), rounds=ROUNDS)
    assert str(error.value) == (
        "round 1: 0 of 5 devices answered within 0.001 virtual seconds (asked 5, late 5, gone 0); "
        "rounds.min_replies=0.25 asks for more"
    )


def test_too_few_answers_end_the_run_by_its_own_policy(tmp_path):
    strict = RoundsConf(count=3, local_steps=4, lr=0.05, min_replies=1.0)
    leaving = fleet(tier(drop_out=0.6))
    with pytest.raises(AggregationError, match=r"of 5 devices answered .*min_replies=1\.0"):
        run_tiny(tmp_path / "0", fleet=leaving, rounds=strict)
    run_tiny(tmp_path / "1", fleet=leaving, rounds=ROUNDS, num_rounds=1)


def test_no_tier_that_fits_is_an_error(tmp_path):
    with pytest.raises(ConfError, match="no tier fits"):
        run_tiny(tmp_path, fleet=fleet(tier(memory_mb=1e-4)))


@pytest.mark.parametrize("options", [{}, {"devices_per_node": 3}, {"codec": "int8"}])
def test_tiers_of_two_widths_train_in_one_run(tmp_path, options):
    mixed = fleet(tier("wide"), tier("narrow", co_share=0.5))
    strategy, grid, result = run_tiny(tmp_path, num_nodes=2, fleet=mixed, **options)
    sizes = {m.content["arrays"].count_bytes() for m in train_messages(grid)}
    assert len(sizes) == 2
    state = strategy.co_state(result.arrays)
    start = strategy.co_state(strategy.initial_arrays())
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert not torch.equal(state["0.weight"][3:], start["0.weight"][3:])
    assert not torch.equal(state["0.weight"][:3], start["0.weight"][:3])


def test_where_all_are_narrow_and_the_cloud_rests_the_rest_stays(tmp_path):
    rounds = RoundsConf(count=1, local_steps=4, lr=0.05, cloud_weight=0.0, weight_decay=0.0)
    strategy, _, result = run_tiny(
        tmp_path, fleet=fleet(tier(co_share=0.5)), rounds=rounds, num_rounds=1
    )
    state = strategy.co_state(result.arrays)
    start = strategy.co_state(strategy.initial_arrays())
    assert torch.equal(state["0.weight"][3:], start["0.weight"][3:])
    assert torch.equal(state["3.weight"][:, 3:], start["3.weight"][:, 3:])
    assert not torch.equal(state["3.weight"][:, :3], start["3.weight"][:, :3])


@pytest.mark.parametrize("options", [{"head_tuning": True}, {"rounds": RoundsConf(scaffold=True)}])
def test_options_that_need_one_width_are_refused(options):
    with pytest.raises(ValueError, match="co_share below 1: not with head tuning or SCAFFOLD"):
        tiny_strategy(fleet=fleet(tier(co_share=0.5)), **options)
