from __future__ import annotations

import pytest
import torch

from dccl_flower.codecs import CODECS
from dccl_flower.config import ConfError
from dccl_flower.fleet.clock import Work
from dccl_flower.fleet.profiles import Fleet, Tier
from dccl_flower.fleet.tiers import Load, Piece, TurnCost, fitting_tiers, turn_costs

WIDE = Tier("wide", 1, 1e9, 2, 10, 10, 1.0, 0.0)
NARROW = Tier("narrow", 1, 1e9, 1, 10, 10, 1.0, 0.0, co_share=0.5)
STATE = {"w": torch.zeros(2, 5), "b": torch.zeros(3)}


def costs(load, codec="fp32", tiers=(WIDE,)):
    return turn_costs(Fleet(tiers, 10, seed=0), load, CODECS[codec])


def test_a_turn_is_the_sum_of_its_pieces_and_needs_the_memory_of_the_largest():
    load = Load(
        [
            Piece(STATE, STATE, down_bytes=7, flops=100.0, memory=30),
            Piece(up_bytes=5, flops=11.0, memory=50),
        ]
    )
    work = Work(4 * 13 + 7, 111.0, 4 * 13 + 5)
    assert costs(lambda share: load) == {1.0: TurnCost(work, work, 50)}


def test_what_is_kept_is_paid_once():
    load = Load([Piece(STATE, flops=1.0)], keep_bytes=1000, keep_flops=500.0)
    cost = costs(lambda share: load)[1.0]
    assert cost.first == Work(1000 + 52, 501.0, 0)
    assert cost.later == Work(52, 1.0, 0)


@pytest.mark.parametrize(("codec", "size"), [("fp16", 26), ("int8", 10 + 4 + 12), ("named", 52)])
def test_states_are_as_large_as_the_codec_makes_them_and_the_rest_stays(codec, size):
    load = Load([Piece(STATE, STATE, down_bytes=3, up_bytes=4)])
    later = costs(lambda share: load, codec)[1.0].later
    assert (later.down_bytes, later.up_bytes) == (size + 3, size + 4)


def test_every_share_of_the_width_is_asked_for_once():
    asked = []

    def load(share):
        asked.append(share)
        return Load([Piece(flops=share)])

    by_share = costs(load, tiers=(WIDE, NARROW, WIDE))
    assert sorted(asked) == [0.5, 1.0]
    assert by_share[0.5].later.flops == 0.5


def test_a_tier_fits_that_has_the_memory_of_its_share():
    needs = {1.0: 2_000_000, 0.5: 1_000_001}
    by_share = costs(lambda share: Load([Piece(memory=needs[share])]), tiers=(WIDE, NARROW))
    assert fitting_tiers(Fleet((WIDE, NARROW), 10, seed=0), by_share) == {"wide"}
    with pytest.raises(ConfError) as error:
        fitting_tiers(Fleet((NARROW,), 10, seed=0), by_share)
    assert str(error.value) == (
        "devices.profiles: no tier fits, the largest has 1 MB and training takes at least 1.0 MB"
    )
