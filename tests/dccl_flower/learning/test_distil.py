from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower.data.batches import as_batches
from dccl_flower.data.loader import ImageLoader
from dccl_flower.image_config import DistilConf
from dccl_flower.learning.compute import Compute
from dccl_flower.learning.distil import distil
from dccl_flower.learning.evaluate import predict

NUM_IMAGES = 6


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def image_loader(augment="none", batch_size=3):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 1), dtype=np.uint8)
    rows, labels = np.array([8, 1, 5, 3, 9, 0]), torch.arange(NUM_IMAGES)
    mean, std = np.array([0.5], dtype=np.float32), np.array([0.3], dtype=np.float32)
    return ImageLoader(pixels, rows, labels, batch_size, mean, std, augment)


def data_loader(shuffle=True):
    images = torch.cat([images for images, _ in image_loader()])
    return as_batches(DataLoader(TensorDataset(images, torch.arange(NUM_IMAGES)), 3, shuffle))


def numbers(*values):
    """Return one batch of images of one number each."""
    labels = torch.zeros(len(values), dtype=torch.long)
    return as_batches([(torch.tensor(values).view(-1, 1), labels)])


def linear(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def with_norm(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))


def weight_of_one(value=1.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def run(mimic, teacher, loader, epochs, lr=0.05, validation=None, mixup=False, **options):
    """Distil and return a copy of the state after every epoch."""
    states = []

    def on_epoch(done, total, loss):
        assert (done, total) == (len(states) + 1, epochs)
        states.append(copy.deepcopy(mimic.state_dict()))

    generator = torch.Generator().manual_seed(0)
    settings = DistilConf(epochs=epochs, lr=lr, mixup=mixup)
    distil(mimic, teacher, loader, settings, generator, validation, on_epoch=on_epoch, **options)
    assert len(states) == epochs
    return states


def count_rows(teacher):
    rows = []
    teacher.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    return rows


def images_shown(model):
    """Return a list that fills with the batches that the model is called on."""
    shown = []
    model.register_forward_hook(lambda module, inputs, output: shown.append(inputs[0].clone()))
    return shown


def distance_to_segment(point, start, end):
    """Return how far a blend misses the line from one image to another."""
    way = (end - start).flatten()
    share = ((point - start).flatten() @ way / (way @ way)).clamp(0, 1)
    return (point - start - share * (end - start)).norm().item()


def gap(mimic, teacher, loader):
    return functional.mse_loss(predict(mimic, loader)[0], predict(teacher, loader)[0]).item()


@pytest.mark.parametrize(
    "loader", [image_loader(), image_loader("flip_crop"), data_loader()], ids=["raw", "aug", "dl"]
)
def test_the_mimic_approaches_the_teacher(loader):
    mimic, teacher = linear(1), linear(2)
    plain = image_loader()
    before = gap(mimic, teacher, plain)
    run(mimic, teacher, loader, epochs=80)
    assert gap(mimic, teacher, plain) < before / 20


def test_the_gap_is_that_of_raw_logits():
    # Both logits of the teacher are 3; a mimic that matched softmax alone would stay at 0.
    teacher, mimic = nn.Linear(1, 2), nn.Linear(1, 2)
    teacher.load_state_dict({"weight": torch.zeros(2, 1), "bias": torch.full((2,), 3.0)})
    mimic.load_state_dict({"weight": torch.zeros(2, 1), "bias": torch.zeros(2)})
    run(mimic, teacher, numbers(-1.0, 0.0, 1.0), epochs=80, lr=0.1)
    torch.testing.assert_close(mimic.bias.detach(), torch.full((2,), 3.0), rtol=0, atol=0.2)


@pytest.mark.parametrize("epochs", [1, 5])
def test_the_teacher_runs_once_a_sample_without_augmentation(epochs):
    teacher = linear(2)
    rows = count_rows(teacher)
    run(linear(1), teacher, image_loader(), epochs)
    assert sum(rows) == NUM_IMAGES


@pytest.mark.parametrize("loader", [image_loader("flip_crop"), data_loader()], ids=["aug", "dl"])
def test_the_teacher_runs_once_a_batch_otherwise(loader):
    teacher = linear(2)
    rows = count_rows(teacher)
    run(linear(1), teacher, loader, epochs=4)
    assert rows == [3, 3] * 4


def test_the_teacher_runs_once_on_the_validation_data():
    teacher = linear(2)
    rows = count_rows(teacher)
    run(linear(1), teacher, image_loader(), 4, validation=image_loader(batch_size=6))
    assert sum(rows) == 2 * NUM_IMAGES


@pytest.mark.parametrize("augment", ["none", "flip_crop"])
@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_is_not_changed(augment, training):
    teacher = with_norm(2).train(training)
    before = copy.deepcopy(teacher.state_dict())
    run(linear(1), teacher, image_loader(augment), 2, validation=image_loader())
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("augment", ["none", "flip_crop"])
def test_a_teacher_in_training_mode_teaches_what_it_says_in_eval_mode(augment):
    states = []
    for training in (True, False):
        mimic = linear(1)
        run(mimic, with_norm(2).train(training), image_loader(augment), 2)
        states.append(mimic.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_with_validation_data_the_epoch_of_the_smallest_error_is_kept():
    # Teacher |x|, mimic w x from w = 1: learning x = -1 pulls w to -1, away from |1| = 1.
    mimic = weight_of_one(1.0)
    states = run(mimic, Absolute(), numbers(-1.0), 4, lr=0.1, validation=numbers(1.0))
    weights = [state["weight"].item() for state in states]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] - weights[-1] > 0.05
    assert mimic.weight.item() == weights[0]


def test_the_best_epoch_may_lie_in_the_middle():
    # From w = 1.15 the validation's w = 1 is nearest after some steps of 0.1 to w = -1.
    mimic = weight_of_one(1.15)
    states = run(mimic, Absolute(), numbers(-1.0), 8, lr=0.05, validation=numbers(1.0))
    errors = [abs(state["weight"].item() - 1) for state in states]
    best = errors.index(min(errors))
    assert 0 < best < len(errors) - 1
    assert mimic.weight.item() == states[best]["weight"].item()


def test_without_validation_data_the_last_epoch_is_kept():
    mimic = weight_of_one(1.0)
    states = run(mimic, Absolute(), numbers(-1.0), 4, lr=0.1)
    assert mimic.weight.item() == states[-1]["weight"].item()
    assert mimic.weight.item() < states[0]["weight"].item()


@pytest.mark.parametrize(
    ("epochs", "moves"), [(1, [1.0]), (3, [1.0, 1.0, 0.1]), (4, [1.0, 1.0, 0.1, 0.1])]
)
def test_the_rate_falls_to_a_tenth_from_half_way_on(epochs, moves):
    # Far from its goal the slope is nearly constant, and Adam then moves by the rate itself.
    mimic = weight_of_one(0.0)
    teacher = weight_of_one(1e6)
    states = run(mimic, teacher, numbers(1.0), epochs, lr=0.01)
    weights = [0.0, *(state["weight"].item() for state in states)]
    steps = [after - before for before, after in pairwise(weights)]
    assert steps == pytest.approx([0.01 * move for move in moves], rel=1e-3)


def test_parts_of_the_mimic_that_do_not_train_stay():
    mimic, teacher = linear(1), linear(2)
    mimic[1].bias.requires_grad_(False)
    bias, weight = mimic[1].bias.clone(), mimic[1].weight.detach().clone()
    run(mimic, teacher, image_loader(), 2)
    assert torch.equal(mimic[1].bias, bias)
    assert not torch.equal(mimic[1].weight, weight)


@pytest.mark.parametrize("training", [True, False])
def test_the_mimic_learns_in_training_mode_and_is_left_in_eval_mode(training):
    mimic, modes = with_norm(1).train(training), []
    mimic.register_forward_hook(lambda *_: modes.append(mimic.training))
    run(mimic, linear(2), image_loader(), 2, validation=image_loader(batch_size=6))
    assert modes == [True, True, False] * 2
    assert not any(module.training for module in mimic.modules())


def test_with_mixup_the_teacher_sees_blends_of_the_images_of_a_batch():
    teacher = linear(2)
    shown = images_shown(teacher)
    run(linear(1), teacher, data_loader(shuffle=False), epochs=3, mixup=True)
    originals = [images for images, _ in data_loader(shuffle=False)] * 3
    moved = []
    for blended, batch in zip(shown, originals, strict=True):
        assert (blended >= batch.amin(0) - 1e-6).all()
        assert (blended <= batch.amax(0) + 1e-6).all()
        batch = list(batch)
        for own, blend in zip(batch, blended, strict=True):
            others = [other for other in batch if other is not own]
            assert min(distance_to_segment(blend, own, other) for other in others) < 1e-5
            moved.append(not torch.allclose(own, blend, atol=1e-3))
    # An image may meet itself, a third of the time.
    assert sum(moved) > len(moved) / 3


def test_without_mixup_the_teacher_sees_the_images_themselves():
    teacher = linear(2)
    shown = images_shown(teacher)
    run(linear(1), teacher, data_loader(shuffle=False), epochs=2)
    originals = [images for images, _ in data_loader(shuffle=False)] * 2
    assert all(torch.equal(seen, own) for seen, own in zip(shown, originals, strict=True))


@pytest.mark.parametrize("loader", [image_loader(), data_loader()], ids=["raw", "dl"])
def test_with_mixup_teacher_and_mimic_see_the_same_images_batch_by_batch(loader):
    teacher, mimic = linear(2), linear(1)
    taught, learnt = images_shown(teacher), images_shown(mimic)
    run(mimic, teacher, loader, epochs=4, mixup=True)
    assert [len(images) for images in taught] == [3, 3] * 4
    assert all(torch.equal(one, other) for one, other in zip(taught, learnt, strict=True))
    assert not torch.equal(taught[0], taught[2])


def test_with_mixup_the_mimic_approaches_the_teacher():
    mimic, teacher = linear(1), linear(2)
    before = gap(mimic, teacher, image_loader())
    run(mimic, teacher, image_loader(), epochs=80, mixup=True)
    assert gap(mimic, teacher, image_loader()) < before / 20


def test_blends_follow_the_generator_alone():
    states = []
    for seed in (1, 2):
        mimic, teacher, loader = linear(1), linear(2), data_loader(shuffle=False)
        torch.manual_seed(seed)
        states.append(run(mimic, teacher, loader, epochs=2, mixup=True)[-1])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_mixed_precision_is_for_training_and_weights_stay_in_single_precision():
    mimic, dtypes = linear(1), []
    mimic.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    compute = Compute(mixed_precision=True, channels_last=True)
    run(mimic, linear(2), image_loader(), 2, validation=image_loader(batch_size=6), compute=compute)
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32] * 2
    assert {p.dtype for p in mimic.parameters()} == {torch.float32}
