from __future__ import annotations

import copy
import math
from itertools import count

import pytest
import torch
from torch import nn
from torch.nn import functional

from dccl_flower.learning.fusion import Copy, average
from dccl_flower.learning.head_tuning import (
    HeadPrivacy,
    apply_head_gradient,
    head_gradient,
    head_part,
)
from dccl_flower.models.served import ServedModel


def net(seed):
    torch.manual_seed(seed)
    body = [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU()]
    model = nn.Sequential(nn.Sequential(*body), nn.Linear(5, 3)).double()
    model.train()(torch.randn(16, 4, dtype=torch.float64))
    return model


def samples(size, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (size,), generator=generator)


def gradient_of(batches, co=None, control=None):
    batches = list(batches)
    return head_gradient(
        co or net(1), control or net(2), iter(batches), functional.cross_entropy, len(batches)
    )


def pooled(parts):
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("device_sizes", [[2], [6, 3], [1, 4, 7]])
def test_cloud_and_devices_together_give_the_gradient_of_the_pooled_data(device_sizes):
    cloud_part = samples(4, seed=0)
    parts = [samples(size, seed=1 + place) for place, size in enumerate(device_sizes)]
    cloud = Copy(*gradient_of([cloud_part]))
    devices = [Copy(*gradient_of([part])) for part in parts]
    share = cloud.count / (cloud.count + sum(device_sizes))
    fused = average(cloud, devices, share)
    expected, total = gradient_of([pooled([cloud_part, *parts])])
    assert total == 4 + sum(device_sizes)
    torch.testing.assert_close(fused, expected, rtol=1e-9, atol=1e-12)


def test_devices_alone_give_the_gradient_of_their_pooled_data():
    parts = [samples(2, seed=1), samples(7, seed=2)]
    fused = average(None, [Copy(*gradient_of([part])) for part in parts], 0.5)
    expected, _ = gradient_of([pooled(parts)])
    torch.testing.assert_close(fused, expected, rtol=1e-9, atol=1e-12)


def test_batches_of_one_side_count_by_their_size():
    batches = [samples(5, seed=1), samples(1, seed=2)]
    gradient, seen = gradient_of(batches)
    expected, _ = gradient_of([pooled(batches)])
    assert seen == 6
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_it_is_the_head_s_gradient_of_the_served_sum_in_eval_mode():
    co, control = net(1), net(2)
    served = ServedModel(copy.deepcopy(control), copy.deepcopy(co)).eval()
    images, labels = samples(6, seed=3)
    functional.cross_entropy(served(images), labels).backward()
    gradient, _ = gradient_of([(images, labels)], co, control)
    expected = {"1.weight": served.co[1].weight.grad, "1.bias": served.co[1].bias.grad}
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_head_gradient_by_hand():
    # As in controlled training: the residual of softmax (1/4, 1/2, 1/4) on label 0 times x.
    co, control = nn.Linear(2, 3), nn.Linear(2, 3)
    for parameter in (*co.parameters(), *control.parameters()):
        nn.init.zeros_(parameter)
    with torch.no_grad():
        control.bias[1] = math.log(2)
    gradient, seen = gradient_of([(torch.tensor([[2.0, -1.0]]), torch.tensor([0]))], co, control)
    expected = {
        "weight": torch.tensor([[-1.5, 0.75], [1.0, -0.5], [0.5, -0.25]]),
        "bias": torch.tensor([-0.75, 0.5, 0.25]),
    }
    assert seen == 1
    torch.testing.assert_close(gradient, expected)


def test_only_the_head_s_parameters_are_in_it():
    gradient, _ = gradient_of([samples(4, seed=0)])
    assert {name: tuple(g.shape) for name, g in gradient.items()} == {
        "1.weight": (3, 5),
        "1.bias": (3,),
    }


def test_neither_model_is_changed():
    co, control = net(1), net(2)
    before = copy.deepcopy([co.state_dict(), control.state_dict()])
    gradient_of([samples(4, seed=0), samples(4, seed=1)], co, control)
    for model, state in zip((co, control), before, strict=True):
        assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_no_more_batches_are_drawn_than_asked_for():
    drawn = count()
    batches = (samples(3, seed) for seed in drawn)
    _, seen = head_gradient(net(1), net(2), batches, functional.cross_entropy, 2)
    assert seen == 6
    assert next(drawn) == 2


def test_apply_head_gradient_by_hand():
    state = {"body": torch.tensor([5.0]), "head": torch.tensor([1.0, 2.0])}
    stepped = apply_head_gradient(state, {"head": torch.tensor([10.0, -4.0])}, lr=0.5)
    assert list(stepped) == ["body", "head"]
    assert stepped["body"].tolist() == [5.0]
    assert stepped["head"].tolist() == [-4.0, 4.0]
    assert state["head"].tolist() == [1.0, 2.0]


def test_a_step_lowers_the_loss_of_the_data_it_comes_from():
    co, control = net(1), net(2)
    images, labels = samples(12, seed=3)
    served = ServedModel(control, co).eval()
    before = functional.cross_entropy(served(images), labels).item()
    gradient, _ = gradient_of([(images, labels)], co, control)
    co.load_state_dict(apply_head_gradient(co.state_dict(), gradient, lr=0.1))
    assert functional.cross_entropy(served(images), labels).item() < before


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (nn.Linear(2, 3), ["weight", "bias"]),
        (
            nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
            ["2.weight", "2.bias"],
        ),
        (nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3, bias=False)), ["1.weight"]),
    ],
)
def test_head_part_takes_the_last_linear_layer_from_a_state(model, names):
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    part = head_part(model, state)
    assert list(part) == names
    assert all(part[name] is state[name] for name in names)


def test_a_gradient_is_shortened_to_the_clip_and_a_short_one_is_left():
    gradient = {"weight": torch.tensor([[3.0, 0.0]]), "bias": torch.tensor([4.0])}
    generator = torch.Generator()
    clipped = HeadPrivacy(clip=1.0).covered(gradient, generator)
    torch.testing.assert_close(clipped["weight"], torch.tensor([[0.6, 0.0]]))
    torch.testing.assert_close(clipped["bias"], torch.tensor([0.8]))
    for own in (HeadPrivacy(clip=5.0), HeadPrivacy()):
        torch.testing.assert_close(own.covered(gradient, generator), gradient, rtol=0, atol=0)


def test_noise_is_a_multiple_of_the_clip_and_that_of_the_generator():
    gradient = {"weight": torch.zeros(100, 100)}
    own = HeadPrivacy(clip=2.0, noise=3.0)
    noisy, again = (own.covered(gradient, torch.Generator().manual_seed(1)) for _ in range(2))
    assert noisy["weight"].std().item() == pytest.approx(6.0, rel=0.05)
    assert torch.equal(noisy["weight"], again["weight"])
