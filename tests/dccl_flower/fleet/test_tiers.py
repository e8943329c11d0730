from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from dccl_flower.config import ConfError, TwoSidedRoundsConf
from dccl_flower.fleet.profiles import Fleet, Tier
from dccl_flower.fleet.tiers import Tiers
from dccl_flower.models.frozen import exchanged_state

EXAMPLE = torch.zeros(2, 2)
ROUNDS = TwoSidedRoundsConf(local_steps=4, device_batch_size=5, momentum=0.9)
WIDE = Tier("wide", 1, 1e9, 100, 10, 10, 1.0, 0.0)
NARROW = Tier("narrow", 1, 1e9, 100, 10, 10, 1.0, 0.0, co_share=0.5)
# Two features to 6 hidden units to 3 classes: 12 + 6, a norm's 4 x 6, 18 + 3 numbers.
WIDE_NUMBERS, NARROW_NUMBERS = 63, 33


def tiers(*chosen, blobs=None, codec="fp32", co=None):
    fleet = Fleet(chosen or (WIDE, NARROW), 10, seed=0)
    blobs = {"mimic": b"m" * 100} if blobs is None else blobs
    return Tiers(fleet, co or tiny_model(3), tiny_model(2), EXAMPLE, ROUNDS, blobs, codec)


def test_a_tier_trains_the_leading_channels_of_its_share():
    state = {n: t.clone() for n, t in exchanged_state(tiny_model(3)).items()}
    part = tiers().part_of(state, NARROW)
    assert torch.equal(part["0.weight"], state["0.weight"][:3])
    assert torch.equal(part["1.running_var"], state["1.running_var"][:3])
    assert torch.equal(part["3.weight"], state["3.weight"][:, :3])
    assert torch.equal(part["3.bias"], state["3.bias"])
    whole = tiers().part_of(state, WIDE)
    assert all(torch.equal(whole[name], tensor) for name, tensor in state.items())


def test_the_work_of_a_turn_by_hand():
    # An image costs 12 + 18 MACs forward; backward as many again for weights, and 18 for inputs
    # but those of the first layer; the mimic 30 more. Two FLOPs a MAC, 4 steps of 5 images.
    first, later = (tiers().work(WIDE, is_first) for is_first in (True, False))
    assert first.flops == later.flops == 20 * 2 * (30 + 30 + 18 + 30)
    assert first.down_bytes == 100 + 4 * WIDE_NUMBERS
    assert later.down_bytes == later.up_bytes == first.up_bytes == 4 * WIDE_NUMBERS


def test_a_narrow_tier_has_less_work_and_memory():
    both = tiers()
    assert both.work(NARROW, False).down_bytes == 4 * NARROW_NUMBERS
    assert both.work(NARROW, False).flops == 20 * 2 * (15 + 15 + 9 + 30)
    assert both.memory(NARROW) < both.memory(WIDE)


def test_bytes_are_those_of_the_codec():
    # two matrices of 12 and 18 numbers and two scales, 33 numbers as they are
    assert tiers(codec="int8").work(WIDE, False).up_bytes == 30 + 2 * 4 + 33 * 4


def test_exemplars_double_what_is_trained_on():
    replaying = tiers(blobs={"mimic": b"", "exemplars": b"e" * 10})
    assert replaying.work(WIDE, False).flops == 2 * tiers().work(WIDE, False).flops
    assert replaying.work(WIDE, True).down_bytes == 10 + 4 * WIDE_NUMBERS


def test_a_co_submodel_that_cannot_be_cut_is_an_error():
    with pytest.raises(ConfError, match=r"co_share=0\.5: .* cannot be cut"):
        tiers(co=torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 3)))
