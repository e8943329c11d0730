from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from dccl_flower.codecs import CODECS
from dccl_flower.config import ConfError
from dccl_flower.fleet.profiles import Fleet, Tier
from dccl_flower.fleet.tiers import turn_costs
from dccl_flower.image_config import RoundsConf
from dccl_flower.learning.widths import Widths
from dccl_flower.strategies.loads import in_steps

EXAMPLE = torch.zeros(2, 2)
WIDE = Tier("wide", 1, 1e9, 100, 10, 10, 1.0, 0.0)
NARROW = Tier("narrow", 1, 1e9, 100, 10, 10, 1.0, 0.0, co_share=0.5)
# Two features to 6 hidden units to 3 classes: 12 + 6, a norm's 4 x 6, 18 + 3 numbers.
WIDE_NUMBERS, NARROW_NUMBERS = 63, 33


def costs(keep_bytes=100, codec="fp32", co=None, control=True, batch_size=5):
    widths = Widths(co or tiny_model(3), EXAMPLE, {1.0, 0.5})
    teacher = tiny_model(2) if control else None
    rounds = RoundsConf(local_steps=4, device_batch_size=batch_size)
    load = in_steps(rounds, widths, EXAMPLE, teacher, keep_bytes=keep_bytes)
    by_share = turn_costs(Fleet((WIDE, NARROW), 10, seed=0), load, CODECS[codec])
    return by_share[1.0], by_share[0.5]


def test_the_work_of_a_turn_by_hand():
    # An image costs 12 + 18 MACs forward; backward as many again for weights, and 18 for inputs
    # but those of the first layer; the mimic 30 more. Two FLOPs a MAC, 4 steps of 5 images.
    wide, _ = costs()
    first, later = wide.first, wide.later
    assert first.flops == later.flops == 20 * 2 * (30 + 30 + 18 + 30)
    assert first.down_bytes == 100 + 4 * WIDE_NUMBERS
    assert later.down_bytes == later.up_bytes == first.up_bytes == 4 * WIDE_NUMBERS


def test_a_narrow_tier_has_less_work_and_memory():
    wide, narrow = costs()
    assert narrow.later.down_bytes == 4 * NARROW_NUMBERS
    assert narrow.later.flops == 20 * 2 * (15 + 15 + 9 + 30)
    assert narrow.memory < wide.memory


def test_bytes_are_those_of_the_codec():
    # two matrices of 12 and 18 numbers and two scales, 33 numbers as they are
    wide, _ = costs(codec="int8")
    assert wide.later.up_bytes == 30 + 2 * 4 + 33 * 4


def test_what_a_turn_trains_on_and_what_is_kept_decide_its_work():
    (larger, _), (usual, _) = costs(keep_bytes=10, batch_size=10), costs()
    assert larger.later.flops == 2 * usual.later.flops
    assert larger.first.down_bytes == 10 + 4 * WIDE_NUMBERS


def test_without_a_control_only_the_model_itself_counts():
    wide, _ = costs(control=False)
    assert wide.later.flops == 20 * 2 * (30 + 30 + 18)


def test_a_co_submodel_that_cannot_be_cut_is_an_error():
    with pytest.raises(ConfError, match=r"co_share=0\.5: layer 0 is too narrow"):
        costs(co=torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 3)))
