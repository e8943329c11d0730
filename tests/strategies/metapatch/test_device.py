from __future__ import annotations

import pytest
import torch
from small_experiments import device_of, halves
from small_worlds import small_world

from dccl_flower.data.samples import count
from dccl_flower.method import Answer

WAYS = ("metapatch", "patches", "fine_tuning", "none")


def experiment_of(by="metapatch", *overrides):
    learns = "both" if by == "metapatch" else "nothing"
    own = (f"adaptation.by={by}", f"cloud.learns={learns}", "adaptation.rank=4")
    return small_world("dccl_world", "adaptation.bottleneck=2", *own, *overrides)


def adapting(experiment):
    """Return a device's half, and what it is asked in the first round."""
    server, half = halves(experiment)
    going = server.round(1, server.initial_state(), [0, 1])
    return half, next(going)[0]


@pytest.mark.parametrize("by", WAYS)
def test_nothing_but_a_vector_and_scores_goes_up(by, tmp_path):
    experiment = experiment_of(by)
    half, ask = adapting(experiment)
    answer = half.turn(ask, device_of(experiment, 0, tmp_path))
    own = experiment.device_loader(0)
    assert {n: t.numel() for n, t in answer.state.items()} == (
        {"vector": 4} if by == "metapatch" else {}
    )
    assert list(answer.beside) == ["scores"]
    assert answer.beside["scores"].shape == (5,)
    assert answer.beside["scores"][-1] == count(own.scoring)
    assert (answer.count, answer.metrics) == (count(own.own), {})
    assert list(half.state_like(ask.turn, None)) == list(ask.state)


@pytest.mark.parametrize("by", WAYS)
def test_devices_of_a_process_leave_nothing_to_one_another(by, tmp_path):
    experiment = experiment_of(by)
    half, ask = adapting(experiment)
    alone = half.turn(ask, device_of(experiment, 1, tmp_path / "alone"))
    half.turn(ask, device_of(experiment, 0, tmp_path / "both"))
    after = half.turn(ask, device_of(experiment, 1, tmp_path / "both"))
    for field in ("state", "beside"):
        torch.testing.assert_close(getattr(alone, field), getattr(after, field), rtol=0, atol=0)


def test_adapting_leaves_model_and_bases_as_they_were_sent(tmp_path):
    experiment = experiment_of()
    half, ask = adapting(experiment)
    sent = {name: tensor.clone() for name, tensor in ask.state.items()}
    half.turn(ask, device_of(experiment, 0, tmp_path))
    torch.testing.assert_close(half._parts.deployed.snapshot(), sent, rtol=0, atol=0)


@pytest.mark.parametrize("by", ["metapatch", "patches"])
def test_a_device_goes_on_from_what_it_kept(by, tmp_path):
    experiment = experiment_of(by, "device.lr=0.001")
    half, ask = adapting(experiment)
    places = [half._parts.patches.start()] if by == "metapatch" else [*half._untrained.values()]
    starts = [torch.cat([each.flatten() for each in places])]
    for number in (1, 2, 3):
        device = device_of(experiment, 0, tmp_path, (number, 0))
        answer = half.turn(ask, device)
        later = device_of(experiment, 0, tmp_path, (number + 1, 0))
        now = answer.state or later.memory.kept("whole-patches")
        starts.append(torch.cat([now[name].flatten() for name in sorted(now)]))
    far = [float((each - starts[0]).norm()) for each in starts[1:]]
    assert 0 < far[0] < far[1] < far[2]


def test_without_an_adaptation_the_cloud_s_model_scores(tmp_path):
    experiment = experiment_of("none", "method.serves=cloud")
    server, half = halves(experiment)
    going = server.round(1, server.initial_state(), [0])
    asks = next(going)
    adapted = half.turn(asks[0], device_of(experiment, 0, tmp_path))
    scoring = going.send({0: adapted})
    scored = half.turn(scoring[0], device_of(experiment, 0, tmp_path))
    torch.testing.assert_close(adapted.beside, scored.beside, equal_nan=True)
    assert scored.state == {}
    assert scored.count == count(experiment.device_loader(0).scoring)


def test_fine_tuning_begins_anew_each_round(tmp_path):
    experiment = experiment_of("fine_tuning")
    half, ask = adapting(experiment)
    first, again = (half.turn(ask, device_of(experiment, 0, tmp_path)) for _ in range(2))
    torch.testing.assert_close(first.beside, again.beside, rtol=0, atol=0, equal_nan=True)


def test_a_device_that_has_not_adapted_does_not_teach(tmp_path):
    experiment = experiment_of("metapatch", "method.raw_samples=device")
    server, half = halves(experiment)
    going = server.round(1, server.initial_state(), [0])
    asks = next(going)
    stage_1 = going.send({0: half.turn(asks[0], device_of(experiment, 0, tmp_path))})
    with pytest.raises(ValueError, match="device 1 has not adapted the model"):
        half.turn(stage_1[0], device_of(experiment, 1, tmp_path))


def test_answers_of_devices_do_not_merge():
    half, ask = adapting(experiment_of())
    with pytest.raises(ValueError, match="do not merge"):
        half.merge(ask.turn, [Answer(0, {}, 1), Answer(1, {}, 1)])
