"""A device's half that gives back what it is sent, and keeps it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dccl_flower.device_store import Parcel
from dccl_flower.learning.fusion import Fusion
from dccl_flower.method import Answer
from dccl_flower.strategies.exchange import merge_answers

STATE = {"w": torch.tensor([[1.0, 0.5], [-0.25, 0.0]])}
PARCEL = Parcel.of({"m": torch.ones(3)})


@dataclass(frozen=True)
class Steps:
    count: int = 3
    rate: float = 0.5
    loss: str = "ce"


class Stepper:
    """A half that keeps what it is sent."""

    turns = (Steps,)

    def state_like(self, turn, device):
        return STATE

    def turn(self, ask, device):
        for parcel in ask.keep.values():
            parcel.state()
        device.memory.keep("last", dict(ask.state))
        return Answer(device.number, dict(ask.state), 1, {"loss": 0.5})

    def merge(self, turn, answers):
        return merge_answers(answers, Fusion())
