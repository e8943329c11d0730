from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from dccl_flower.codecs import CODECS, FP32, FP64
from dccl_flower.flower.device_app import DeviceClient
from dccl_flower.flower.letters import Letter
from dccl_flower.flower.wire import ndarrays
from dccl_flower.learning.fusion import Fusion
from dccl_flower.method import Answer, Ask
from dccl_flower.strategies.exchange import merge_answers

STATE = {"w": torch.tensor([[1.0, 0.5], [-0.25, 0.0]])}
LIKE = {"g": torch.zeros(2, 3)}


@dataclass(frozen=True)
class Measure:
    """Give a third of the device's number, which neither fp16 nor int8 would keep."""


class Measurer:
    """A device's half whose answer is no trained copy of what it was sent."""

    turns = (Measure,)

    def state_like(self, turn, device):
        return STATE

    def turn(self, ask, device):
        return Answer(device.number, {"g": torch.full((2, 3), device.number / 3)}, 1)

    def merge(self, turn, answers):
        return merge_answers(answers, Fusion())


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_no_update_goes_up_exactly_from_one_device_and_from_several(tmp_path, codec):
    engine = {"server-round": 1, "exchange": 0, "keep-last": 1, "seed": 0, "run": "tests"}
    letter = Letter(Ask(STATE, Measure(), like=LIKE), CODECS[codec], engine)
    client = DeviceClient(Measurer(), lambda device: [], tmp_path)

    def answer(devices, is_shared):
        content = letter.content(devices, is_shared, [], {})
        arrays, count, _ = client.fit(ndarrays(content["arrays"]), dict(content["config"]))
        return arrays, count

    arrays, count = answer([1], False)
    assert count == 1
    assert torch.equal(FP32.decode(arrays, LIKE)["g"], torch.full((2, 3), 1 / 3))
    arrays, count = answer([1, 3], True)
    assert count == 2
    mean = (torch.tensor(1 / 3).double() + 1) / 2
    assert torch.equal(FP64.decode(arrays, LIKE)["g"], mean.expand(2, 3))
