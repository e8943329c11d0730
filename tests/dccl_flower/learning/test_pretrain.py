from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower.data.batches import as_batches
from dccl_flower.image_config import PretrainConf
from dccl_flower.learning.compute import Compute
from dccl_flower.learning.evaluate import accuracy, predict
from dccl_flower.learning.pretrain import pretrain

IMAGES = torch.tensor([[2.0, 0.1], [-1.5, 0.2], [0.1, 2.0], [-2.0, 0.3], [0.0, 1.8], [1.7, -0.2]])
LABELS = torch.tensor([0, 1, 2, 1, 2, 0])


def separable(batch_size=3):
    return as_batches(DataLoader(TensorDataset(IMAGES, LABELS), batch_size))


def one_image(label):
    return as_batches(DataLoader(TensorDataset(torch.ones(1, 1), torch.tensor([label])), 1))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def fading_model():
    """Answer class 0 by a little, so that training on class 1 turns it over some epochs."""
    model = nn.Linear(1, 2, bias=False)
    model.load_state_dict({"weight": torch.tensor([[0.1], [0.0]])})
    return model


def conf(epochs, lr=0.1):
    return PretrainConf(epochs=epochs, lr=lr, momentum=0.9, weight_decay=5e-4)


def two_of_three_classes():
    """Return the samples of classes 0 and 1 alone."""
    held = LABELS < 2
    return as_batches(DataLoader(TensorDataset(IMAGES[held], LABELS[held]), 2))


def linear(classes, rows):
    """Return a linear model of that many of the same three classes."""
    model = nn.Linear(2, classes)
    model.load_state_dict({"weight": rows[:classes, :2], "bias": rows[:classes, 2]})
    return model


def masked(mask_unseen, **options):
    return PretrainConf(
        epochs=3, lr=0.1, momentum=0.9, weight_decay=0.0, mask_unseen=mask_unseen, **options
    )


def run(model, loader, settings, validation=None, compute=None):
    """Pretrain and return a copy of the state after every epoch."""
    states = []

    def on_epoch(done, total, loss):
        assert (done, total) == (len(states) + 1, settings.epochs)
        states.append(copy.deepcopy(model.state_dict()))

    generator = torch.Generator().manual_seed(0)
    options = {"on_epoch": on_epoch} | ({} if compute is None else {"compute": compute})
    pretrain(model, loader, settings, generator, validation, **options)
    assert len(states) == settings.epochs
    return states


def same(left, right):
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_the_loss_goes_down_on_a_separable_problem():
    model = net()
    before = functional.cross_entropy(*predict(model, separable())).item()
    run(model, separable(), conf(epochs=15))
    logits, labels = predict(model, separable())
    assert functional.cross_entropy(logits, labels).item() < before / 4
    assert accuracy(logits, labels) == 1.0


def test_with_validation_data_the_best_epoch_is_kept():
    model = fading_model()
    states = run(model, one_image(label=1), conf(epochs=6, lr=0.05), one_image(label=0))
    scores = []
    for state in states:
        judge = fading_model()
        judge.load_state_dict(state)
        scores.append(accuracy(*predict(judge, one_image(label=0))))
    assert scores[0] == 1.0
    assert scores[-1] == 0.0
    best = [state for state, score in zip(states, scores, strict=True) if score == 1.0]
    assert any(same(model.state_dict(), state) for state in best)


def test_the_best_epoch_s_running_statistics_are_kept_with_its_weights():
    # The more epochs on labels turned round, the worse the score; the last is not the best.
    turned = DataLoader(TensorDataset(IMAGES, (LABELS + 1) % 3), 3)
    model = net()
    run(model, separable(), conf(epochs=15))
    states = run(model, turned, conf(epochs=10), separable())
    assert accuracy(*predict(model, separable())) > 0.5
    assert not same(model.state_dict(), states[-1])
    assert any(same(model.state_dict(), state) for state in states)


def test_without_validation_data_the_last_epoch_is_kept():
    model = fading_model()
    states = run(model, one_image(label=1), conf(epochs=6, lr=0.05))
    assert same(model.state_dict(), states[-1])
    assert not same(model.state_dict(), states[0])


@pytest.mark.parametrize(("batch_size", "steps"), [(2, 3), (4, 2), (6, 1)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_epoch_takes_as_many_steps_as_the_loader_has_batches(batch_size, steps, epochs):
    model, trained = net().eval(), []
    model.register_forward_hook(lambda *_: trained.append(model.training))
    run(model, separable(batch_size), conf(epochs), validation=separable(batch_size=6))
    assert trained.count(True) == steps * epochs
    assert trained.count(False) == epochs


def test_the_head_trains_alone_first_and_all_else_then():
    model, seen = net(), []
    first = copy.deepcopy(model.state_dict())
    settings = PretrainConf(epochs=2, head_epochs=3, lr=0.1)

    def on_epoch(done, total, loss):
        seen.append((done, total, copy.deepcopy(model.state_dict())))

    pretrain(model, separable(), settings, torch.Generator().manual_seed(0), on_epoch=on_epoch)
    assert [(done, total) for done, total, _ in seen] == [(n, 5) for n in range(1, 6)]
    of_head = {"3.weight", "3.bias"}
    for name, tensor in first.items():
        assert torch.equal(seen[2][2][name], tensor) == (name not in of_head), name
        assert not torch.equal(seen[4][2][name], tensor), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_model_is_left_in_eval_mode():
    model = net().train()
    run(model, separable(), conf(epochs=1), validation=separable())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("mask_unseen", [False, True])
def test_only_a_masked_head_learns_nothing_of_an_unseen_class(mask_unseen):
    model = net()
    head = copy.deepcopy(model[3])
    run(model, two_of_three_classes(), masked(mask_unseen))
    assert (model[3].bias[2] == head.bias[2]).item() is mask_unseen
    assert torch.equal(model[3].weight[2], head.weight[2]) is mask_unseen
    assert not torch.equal(model[3].weight[:2], head.weight[:2])


def test_a_masked_linear_model_says_of_an_unseen_class_what_it_said_before():
    rows = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    model = linear(3, rows)
    before, _ = predict(model, separable())
    run(model, two_of_three_classes(), masked(True))
    after, _ = predict(model, separable())
    assert torch.equal(after[:, 2], before[:, 2])
    assert not torch.allclose(after[:, :2], before[:, :2])


def test_masked_training_is_that_of_a_model_of_the_seen_classes_alone():
    rows = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    three, two = linear(3, rows), linear(2, rows)
    run(three, two_of_three_classes(), masked(True))
    run(two, two_of_three_classes(), masked(False))
    torch.testing.assert_close(three.weight[:2], two.weight)
    torch.testing.assert_close(three.bias[:2], two.bias)


def test_masking_changes_nothing_where_every_class_is_seen():
    plain, other = net(), net()
    run(plain, separable(), masked(False))
    run(other, separable(), masked(True))
    assert same(plain.state_dict(), other.state_dict())


def test_mixed_precision_is_for_training_and_weights_stay_in_single_precision():
    model, dtypes = net(), []
    model.register_forward_hook(lambda module, inputs, out: dtypes.append(out.dtype))
    compute = Compute(mixed_precision=True, channels_last=True)
    run(model, separable(), conf(epochs=15), separable(batch_size=6), compute)
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32] * 15
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert accuracy(*predict(model, separable())) == 1.0


def test_a_last_batch_of_one_that_batch_norm_cannot_train_on_is_left_out():
    five = TensorDataset(IMAGES[:5], LABELS[:5])
    whole, rest = net(), net()
    plain = PretrainConf(epochs=1, lr=0.1, schedule="step", momentum=0.0, weight_decay=0.0)
    run(whole, as_batches(DataLoader(five, 4)), plain)
    run(rest, as_batches(DataLoader(TensorDataset(IMAGES[:4], LABELS[:4]), 4)), plain)
    assert same(whole.state_dict(), rest.state_dict())
