"""What a device of DC-CCL is asked in a message: plain values, one frozen dataclass a question."""

from __future__ import annotations

from dataclasses import dataclass

from dccl_flower.learning.controlled import LocalRecipe
from dccl_flower.learning.fusion import Fusion


@dataclass(frozen=True)
class Train:
    """Train the co-submodel, of a share of its width, under the control.

    ``own_share`` is this side's in mixed batch statistics. ``fusion`` is how a worker merges copies
    of devices that share a message.
    """

    recipe: LocalRecipe
    loss: str
    keep_momentum: bool
    tell_class_counts: bool
    own_share: float
    width: float
    fusion: Fusion


@dataclass(frozen=True)
class TuneHead:
    """Give the head's mean gradient over so many batches, in one of the round's tuning steps."""

    batches: int
    loss: str
    step: int
    width: float = 1.0


@dataclass(frozen=True)
class Score:
    """Score control + co on the device's own samples."""

    width: float
