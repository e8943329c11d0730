"""What both halves of CoDA have: the experiment, and what crosses between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dccl_flower.codecs import State
from dccl_flower.data.interactions import PAST, RECENT, TEST
from dccl_flower.data.samples import Samples
from dccl_flower.interaction_experiment import InteractionExperiment, UserSamples
from dccl_flower.strategies.coda.sieve import GROUP

MODEL, MATCHED, KEPT = "model", "matched", "kept"
ITEM, HISTORY = "item", "history"
CROSSING = (ITEM, HISTORY, "profile", "label")  # of a sample of somebody else: not the user


class CodaExperiment(InteractionExperiment):
    """An experiment whose devices hold their past samples beside the recent ones."""

    def device_loader(self, device: int) -> UserSamples:
        """Return a device's past and recent samples, and those that score it."""
        user = int(self.users[device])
        own = np.concatenate([self.log.rows_of(user, part) for part in (PAST, RECENT)])
        return UserSamples(self.samples(own), self.samples(self.log.rows_of(user, TEST)))

    def known(self) -> np.ndarray:
        """Return the rows that the cloud has: all users' past and recent ones."""
        return np.flatnonzero(self.log.parts < TEST)


def told_keys(own: Samples) -> dict[str, Tensor]:
    """Return what a device tells of its samples (N): items (N,) and histories (N * length,)."""
    return {ITEM: own[ITEM], HISTORY: own[HISTORY].flatten()}


def read_keys(told: Mapping[str, Tensor], length: int, num_items: int, device: int) -> Samples:
    """Return items (N,) and histories (N, length) as they were told.

    Raises ValueError, naming the device, for what cannot be such.
    """
    items, histories = told[ITEM], told[HISTORY]
    is_code = all(((each >= -1) & (each < num_items)).all() for each in (items, histories))
    if not is_code or (items < 0).any() or len(histories) != length * len(items):
        raise ValueError(f"device {device} told keys that are no items with histories of {length}")
    return {ITEM: items.long(), HISTORY: histories.long().reshape(-1, length)}


def packed(found: Samples) -> State:
    """Return samples of other users as they cross: numbers in place of users, by who comes first.

    Codes are exact up to 2**31.
    """
    names, first, places = np.unique(found["user"].numpy(), return_index=True, return_inverse=True)
    number = np.empty(len(names), dtype=np.int32)
    number[first.argsort()] = np.arange(len(names))
    codes = {name: found[name].to(torch.int32) for name in CROSSING}
    return {**codes, GROUP: torch.from_numpy(number[places])}


def unpacked(matched: State) -> Samples:
    """Return what was packed as samples of one nameless user, and the numbers beside them."""
    samples = {name: codes.long() for name, codes in matched.items()}
    nobody = torch.zeros_like(samples[ITEM])
    return {**samples, "user": nobody, "label": matched["label"].float()}
