from __future__ import annotations

from itertools import islice

import pytest
import torch
from small_experiments import (
    answered,
    device_of,
    end_of,
    halves,
    small_experiment,
    two_widths,
    with_recipe,
)
from torch.nn import functional

from dccl_flower.config import ConfError
from dccl_flower.data.batches import endless
from dccl_flower.models.build import build_submodels
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.simulations.experiment import check_devices


@pytest.fixture(scope="module")
def experiment():
    return small_experiment("method.name=fedavg")


def test_all_are_asked_the_same_and_averaged_by_sample_count(experiment):
    server, _ = halves(experiment)
    exchange = server.round(1, server.initial_state(), [0, 2])
    asks = next(exchange)
    assert asks[0] is asks[2]
    assert (list(asks), asks[0].keep, asks[0].beside) == ([0, 2], {}, {})
    state = end_of(exchange, answered(asks, {0: 1.0, 2: 5.0}, {0: 30, 2: 10}))
    assert list(state) == list(server.initial_state())
    assert all(torch.equal(each, torch.full_like(each, 2.0)) for each in state.values())


def test_who_does_not_answer_does_not_count(experiment):
    server, _ = halves(experiment)
    exchange = server.round(1, server.initial_state(), [0, 1])
    answers = answered(next(exchange), {0: 1.0, 1: 5.0}, {0: 30, 1: 10})
    state = end_of(exchange, {1: answers[1]})
    assert all(torch.equal(each, torch.full_like(each, 5.0)) for each in state.values())


def test_a_device_takes_plain_steps_of_cross_entropy(experiment, tmp_path):
    server, half = halves(experiment)
    state, device = server.initial_state(), device_of(experiment, 1, tmp_path)
    ask = with_recipe(next(server.round(1, state, [1]))[1], momentum=0.9, weight_decay=0.01)
    answer = half.turn(ask, device)

    model = half.model(1.0, device)
    model.load_state_dict(state, strict=False)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for images, labels in islice(endless(device.batches, device.generator("train")), 2):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    for name, tensor in exchanged_state(model).items():
        torch.testing.assert_close(answer.state[name], tensor.detach())
    assert answer.count == len(experiment.plan.devices[1])
    assert set(answer.metrics) == {"loss", "accuracy"}


def test_its_model_is_dc_ccls_co_submodel(experiment):
    dc_ccl = small_experiment("method.name=dc_ccl")
    shape, classes = dc_ccl.images.shape, dc_ccl.images.num_classes
    theirs = exchanged_state(build_submodels(dc_ccl.conf, shape, classes).co)
    ours = halves(experiment)[0].initial_state()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_the_scores_are_accuracies_of_the_model_alone(experiment):
    server, _ = halves(experiment)
    state = server.initial_state()
    last = list(state)[-1]
    assert state[last].shape == (10,)
    always_three = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    always_three[last][3] = 1.0
    labels = experiment.images.test_labels
    scores = dict(server.scores(always_three))
    assert scores["accuracy"] == pytest.approx((labels == 3).mean())
    assert scores["accuracy_device_classes"] == 0.0
    assert dict(server.references()) == {}


def test_tiers_of_another_width_are_refused_before_anything_trains(tmp_path):
    profiles = two_widths(tmp_path)
    experiment = small_experiment("method.name=fedavg", profiles)
    with pytest.raises(ConfError) as error:
        check_devices(experiment)
    assert str(error.value) == (
        f"{profiles}: tiers[1].co_share=0.5: must be 1 with method.name=fedavg, "
        "which trains one width"
    )


def test_a_model_that_does_not_go_with_the_images_is_refused_by_its_key():
    experiment = small_experiment("method.name=fedavg", "model.co.name=vgg16_slim")
    message = r"^model\.co\.name=vgg16_slim: does not go with images \(1, 8, 8\)"
    with pytest.raises(ConfError, match=message):
        check_devices(experiment)
