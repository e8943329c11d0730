"""The share of a round that checks and checkpoints take is measured, and nothing stays patched."""

from __future__ import annotations

from dccl_flower import in_process
from dccl_flower.faults import check_values
from dccl_flower.simulations.overhead import shares

SMALL = ["devices.count=3", "rounds.count=3", "rounds.local_steps=2", "data.train_fraction=0.3"]
SMALL += ["pretrain.epochs=1", "distil.epochs=1"]


def test_both_shares_are_parts_of_a_round():
    checks, checkpoint = shares("digits", SMALL)
    assert 0 < checks < checks + checkpoint < 1
    assert checkpoint > 0
    assert in_process.check_values is check_values


def test_without_checkpoints_there_is_little_to_save():
    assert shares("digits", [*SMALL, "runtime.keep_last=0"])[1] < shares("digits", SMALL)[1]
