"""What a device does to its head gradient before that goes up."""

from __future__ import annotations

import pytest
import torch
from refusals import refusal
from small_experiments import answered as hand_made
from small_experiments import device_of, end_of, halves, small_experiment

from dccl_flower.method import Answer

TUNED = ("head_tuning=federated", "rounds.cloud_weight=0")


def head_answers(experiment, store, devices=(0, 1, 2)):
    """Return the round after its first exchange, and what devices answer to the second."""
    server, half = halves(experiment)
    state = server.initial_state()
    going = server.round(1, state, devices)
    asks = next(going)
    asks = going.send(hand_made(asks, dict.fromkeys(devices, 0.1), dict.fromkeys(devices, 10.0)))
    return going, {d: half.turn(ask, device_of(experiment, d, store)) for d, ask in asks.items()}


def test_devices_below_the_floor_give_nothing_and_do_not_count(tmp_path):
    few = small_experiment(*TUNED, "rounds.head_tuning_floor=89")  # devices hold 89, 89 and 88
    going, answers = head_answers(few, tmp_path)
    told = [answers[device].beside["head-samples"].item() for device in (0, 1, 2)]
    assert told == [89, 89, 0]
    assert not any(tensor.any() for tensor in answers[2].state.values())
    after = end_of(going, answers)
    going, answers = head_answers(few, tmp_path, devices=(0, 1))
    assert all(torch.equal(after[n], t) for n, t in end_of(going, answers).items())


def test_the_head_stays_where_nobody_gives_a_gradient(tmp_path):
    none = small_experiment(*TUNED, "rounds.head_tuning_floor=90")
    going, answers = head_answers(none, tmp_path)
    after = end_of(going, answers)
    assert all((tensor - 0.1).abs().max() < 1e-6 for tensor in after.values())


def test_gradients_are_clipped_and_noised_by_device_and_round(tmp_path):
    clip = ("rounds.head_tuning_clip=0.01",)
    _, plain = head_answers(small_experiment(*TUNED), tmp_path)
    _, clipped = head_answers(small_experiment(*TUNED, *clip), tmp_path)
    _, noisy = head_answers(small_experiment(*TUNED, *clip, "rounds.head_tuning_noise=2"), tmp_path)

    def flat(answer: Answer):
        return torch.cat([tensor.flatten() for tensor in answer.state.values()])

    for device in (0, 1, 2):
        long, short = flat(plain[device]), flat(clipped[device])
        torch.testing.assert_close(short, 0.01 * long / long.norm())
        assert (flat(noisy[device]) - short).std().item() == pytest.approx(0.02, rel=0.2)
    noises = [flat(noisy[d]) - flat(clipped[d]) for d in (0, 1)]
    assert not torch.allclose(*noises)


def test_noise_without_a_clip_is_refused():
    assert refusal("rounds.head_tuning_noise=1") == (
        "rounds.head_tuning_noise=1.0: needs rounds.head_tuning_clip, of which it is a multiple"
    )
