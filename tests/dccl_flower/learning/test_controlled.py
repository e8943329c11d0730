from __future__ import annotations

import copy
import math
from itertools import count, repeat

import pytest
import torch
from torch import nn
from torch.nn import functional

from dccl_flower.learning.control_logits import KnownBatch
from dccl_flower.learning.controlled import STATISTICS, LocalRecipe, train_controlled
from dccl_flower.models.frozen import Frozen
from dccl_flower.models.served import ServedModel

PLAIN_STEP = LocalRecipe(steps=1, lr=1.0, momentum=0.0, weight_decay=0.0)


def net_with_batch_norm(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    return net.double()


def one_batch(size=6, features=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, features, generator=generator, dtype=torch.float64)
    return images, torch.randint(classes, (size,), generator=generator)


def constant_slope(logits, labels):
    """Return a loss of slope one in every logit's mean, whatever the logits are."""
    return logits.mean()


def one_weight(value=0.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def no_control(classes=1):
    control = nn.Linear(1, classes)
    for parameter in control.parameters():
        nn.init.zeros_(parameter)
    return control


def ones(size=2):
    return torch.ones(size, 1), torch.zeros(size, dtype=torch.long)


def numbered_batches():
    return (one_batch(seed=seed) for seed in count())


def slide(recipe, **options):
    """Return where a weight of 0 ends on a slope of one."""
    co = one_weight()
    train_controlled(co, no_control(), repeat(ones()), constant_slope, recipe, **options)
    return co.weight.item()


def train(co, batches, recipe, **options):
    control = net_with_batch_norm(2)
    train_controlled(co, control, batches, functional.cross_entropy, recipe, **options)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_one_step_has_the_gradient_of_the_served_sum_with_the_mimic(statistics):
    co, mimic = net_with_batch_norm(1), net_with_batch_norm(2)
    images, labels = one_batch()
    served = ServedModel(copy.deepcopy(mimic).eval(), copy.deepcopy(co).train())
    if statistics in ("frozen", "fused"):  # alone, a side's mixture is its own batch
        served.co[1].eval()
    functional.cross_entropy(served(images), labels).backward()

    before = copy.deepcopy(co)
    recipe = LocalRecipe(1, 1.0, 0.0, 0.0, statistics)
    train_controlled(co, mimic, iter([(images, labels)]), functional.cross_entropy, recipe)

    old, expected = dict(before.named_parameters()), dict(served.co.named_parameters())
    for name, new in co.named_parameters():
        torch.testing.assert_close(old[name] - new, expected[name].grad, rtol=1e-9, atol=1e-12)


def test_linear_head_step_by_hand():
    # Control logits (0, ln 2, 0) give softmax (1/4, 1/2, 1/4); less the one-hot label 0
    # the residual is (-3/4, 1/2, 1/4), and the weight's gradient its product with x = (2, -1).
    control, co = nn.Linear(2, 3), nn.Linear(2, 3)
    for parameter in (*control.parameters(), *co.parameters()):
        nn.init.zeros_(parameter)
    with torch.no_grad():
        control.bias[1] = math.log(2)
    batch = torch.tensor([[2.0, -1.0]]), torch.tensor([0])
    train_controlled(co, control, iter([batch]), functional.cross_entropy, PLAIN_STEP)
    weight = -torch.tensor([[-1.5, 0.75], [1.0, -0.5], [0.5, -0.25]])
    torch.testing.assert_close(co.weight.detach(), weight)
    torch.testing.assert_close(co.bias.detach(), -torch.tensor([-0.75, 0.5, 0.25]))


@pytest.mark.parametrize("seed", range(3))
def test_linear_head_step_is_the_jacobian_times_softmax_less_label(seed):
    torch.manual_seed(seed)
    co, control = nn.Linear(4, 3).double(), net_with_batch_norm(seed + 10).eval()
    images, labels = one_batch(size=5, seed=seed)
    with torch.no_grad():
        residual = (control(images) + co(images)).softmax(1) - functional.one_hot(labels, 3)
    weight, bias = co.weight.detach().clone(), co.bias.detach().clone()
    train_controlled(co, control, iter([(images, labels)]), functional.cross_entropy, PLAIN_STEP)
    torch.testing.assert_close(weight - co.weight.detach(), residual.T @ images / 5)
    torch.testing.assert_close(bias - co.bias.detach(), residual.mean(0))


def test_the_control_is_never_changed_even_if_it_comes_in_training_mode():
    co, control = net_with_batch_norm(1), net_with_batch_norm(2).train()
    before = copy.deepcopy(control.state_dict())
    batches = repeat(one_batch())
    train_controlled(co, control, batches, functional.cross_entropy, LocalRecipe(4, 0.1))
    for name, tensor in control.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in control.parameters())


def test_frozen_parts_of_the_co_submodel_stay():
    co = nn.Sequential(Frozen(nn.Linear(4, 5)), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    stem = copy.deepcopy(co[0].state_dict())
    head = co[2].weight.detach().clone()
    recipe = LocalRecipe(3, 0.1)
    batches = repeat(one_batch())
    train_controlled(co, net_with_batch_norm(2), batches, functional.cross_entropy, recipe)
    assert all(torch.equal(tensor, stem[name]) for name, tensor in co[0].state_dict().items())
    assert not torch.equal(co[2].weight, head)


def test_momentum_carries_over_the_steps_of_one_call():
    # v = 1, then 0.9 + 1; at rate 0.1 the weight falls by 0.1 and by 0.19.
    co, recipe = one_weight(), LocalRecipe(2, 0.1, momentum=0.9, weight_decay=0.0)
    train_controlled(co, no_control(), repeat(ones()), constant_slope, recipe)
    assert co.weight.item() == pytest.approx(-0.29)


def test_momentum_is_fresh_each_call_unless_it_is_kept():
    co, recipe = one_weight(), LocalRecipe(1, 0.1, momentum=0.9, weight_decay=0.0)
    for _ in range(2):
        train_controlled(co, no_control(), repeat(ones()), constant_slope, recipe)
    assert co.weight.item() == pytest.approx(-0.2)


def test_momentum_kept_over_two_calls_is_that_of_one_call_with_all_steps():
    whole, parts, kept = net_with_batch_norm(1), net_with_batch_norm(1), {}
    train(whole, numbered_batches(), LocalRecipe(5, 0.1))
    batches = numbered_batches()
    for steps in (2, 3):
        train(parts, batches, LocalRecipe(steps, 0.1), momentum=kept)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_an_empty_momentum_is_filled_with_the_last_buffers():
    # v = 1, then 0.5 + 1.
    kept = {}
    slide(LocalRecipe(2, 0.1, momentum=0.5, weight_decay=0.0), momentum=kept)
    assert {name: buffer.item() for name, buffer in kept.items()} == {"weight": 1.5}


def test_without_momentum_none_is_kept():
    kept = {}
    slide(PLAIN_STEP, momentum=kept)
    assert kept == {}


def test_frozen_parts_have_no_momentum():
    co, kept = nn.Sequential(Frozen(nn.Linear(4, 2)), nn.Linear(2, 3)).double(), {}
    train(co, numbered_batches(), LocalRecipe(1, 0.1), momentum=kept)
    assert sorted(kept) == ["1.bias", "1.weight"]


@pytest.mark.parametrize(
    ("steps", "momentum", "travel"),
    [
        (1, 0.0, 1.5),  # a slope of 1 and the correction of 0.5
        (2, 0.5, 1.5 + 2.25),  # v = 1.5, then 0.5 * 1.5 + 1.5
    ],
)
def test_a_correction_is_added_to_the_gradient_of_every_step(steps, momentum, travel):
    correction = {"weight": torch.tensor([[0.5]])}
    weight = slide(LocalRecipe(steps, 0.1, momentum, 0.0), correction=correction)
    assert weight == pytest.approx(-0.1 * travel)
    assert correction["weight"].item() == 0.5


def test_a_correction_reaches_the_parameter_of_its_name_alone():
    plain, corrected = net_with_batch_norm(1), net_with_batch_norm(1)
    apart = {"0.bias": torch.arange(5.0, dtype=torch.float64)}
    train(plain, numbered_batches(), PLAIN_STEP)
    train(corrected, numbered_batches(), PLAIN_STEP, correction=apart)
    for name, tensor in plain.state_dict().items():
        moved = tensor - corrected.state_dict()[name]
        torch.testing.assert_close(moved, apart.get(name, torch.zeros_like(tensor)))


def test_a_gradient_longer_than_allowed_is_cut():
    recipe = LocalRecipe(1, 0.1, 0.0, 0.0, max_grad_norm=0.25)
    assert slide(recipe) == pytest.approx(-0.1 * 0.25, rel=1e-4)


def test_weight_decay_pulls_on_the_weight():
    co, recipe = one_weight(2.0), LocalRecipe(1, 0.1, momentum=0.0, weight_decay=0.5)
    train_controlled(co, no_control(), repeat(ones()), constant_slope, recipe)
    assert co.weight.item() == pytest.approx(2.0 - 0.1 * (1 + 0.5 * 2.0))


@pytest.mark.parametrize("steps", [1, 3])
def test_exactly_the_steps_of_the_recipe_are_taken(steps):
    co, taken = one_weight(), count()
    batches = (ones() for _ in taken)
    recipe = LocalRecipe(steps, 0.1, momentum=0.0, weight_decay=0.0)
    train_controlled(co, no_control(), batches, constant_slope, recipe)
    assert next(taken) == steps
    assert co.weight.item() == pytest.approx(-0.1 * steps)


def test_loss_and_accuracy_are_means_over_samples_not_over_batches():
    def mean_label(logits, labels):
        return labels.double().mean() + 0 * logits.sum()

    co = nn.Linear(1, 3)
    control = no_control(3)
    with torch.no_grad():
        control.bias[0] = 100.0  # every answer is class 0
    batches = [(torch.zeros(len(labels), 1), torch.tensor(labels)) for labels in ([2], [0, 1, 0])]
    loss, accuracy = train_controlled(co, control, iter(batches), mean_label, LocalRecipe(2, 0.0))
    assert loss == pytest.approx((2 * 1 + 1 / 3 * 3) / 4)
    assert accuracy == 2 / 4


@pytest.mark.parametrize(
    ("statistics", "mean", "variance"), [("batch", 0.2, 1.1), ("frozen", 0.0, 1.0)]
)
def test_frozen_statistics_keep_running_statistics(statistics, mean, variance):
    # Samples 1 and 3: mean 2, variance 2; a tenth of each enters the running values 0 and 1.
    co = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    batch = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])
    recipe = LocalRecipe(1, 0.1, statistics=statistics)
    scale = co[0].weight.detach().clone()
    train_controlled(co, no_control(2), iter([batch]), functional.cross_entropy, recipe)
    assert co[0].running_mean.item() == pytest.approx(mean)
    assert co[0].running_var.item() == pytest.approx(variance)
    assert not torch.equal(co[0].weight, scale)


def test_fused_statistics_are_those_of_all_inputs_of_the_round():
    # 1, 5, 9 and 3: mean 18/4, and squares 12.25 + 0.25 + 20.25 + 2.25 = 35 over 4.
    co = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    batches = [torch.tensor([[1.0], [5.0], [9.0]]), torch.tensor([[3.0]]), torch.tensor([[99.0]])]
    labelled = ((images, torch.zeros(len(images), dtype=torch.long)) for images in batches)
    recipe = LocalRecipe(2, 0.1, statistics="fused")
    train_controlled(co, no_control(2), labelled, functional.cross_entropy, recipe)
    assert co[0].running_mean.item() == pytest.approx(4.5)
    assert co[0].running_var.item() == pytest.approx(8.75)


def test_fused_statistics_train_under_the_old_ones():
    frozen, fused = net_with_batch_norm(1), net_with_batch_norm(1)
    for co, statistics in ((frozen, "frozen"), (fused, "fused")):
        train(co, numbered_batches(), LocalRecipe(4, 0.1, statistics=statistics))
    expected = dict(frozen.named_parameters())
    torch.testing.assert_close(dict(fused.named_parameters()), expected, rtol=0, atol=0)
    assert not torch.equal(fused[1].running_mean, frozen[1].running_mean)


def test_the_co_submodel_is_left_in_eval_mode():
    co = net_with_batch_norm(1).train()
    train_controlled(
        co, net_with_batch_norm(2), repeat(one_batch()), functional.cross_entropy, PLAIN_STEP
    )
    assert not any(module.training for module in co.modules())


def test_a_third_element_is_refused_and_never_taken_for_known_logits():
    images, labels = one_batch()
    with pytest.raises(ValueError, match="a batch is a tuple of 3"):
        train(net_with_batch_norm(1), iter([(images, labels, torch.zeros(6, 3))]), PLAIN_STEP)


def test_known_logits_take_the_place_of_the_control():
    # Logits ln(1, 2, 1) of the control give the residual of the step by hand above.
    co = nn.Linear(2, 3)
    nn.init.zeros_(co.weight)
    nn.init.zeros_(co.bias)
    known = torch.tensor([[0.0, math.log(2), 0.0]])
    batch = KnownBatch(torch.tensor([[2.0, -1.0]]), torch.tensor([0]), known)
    control = nn.Linear(9, 9)  # could not be asked
    train_controlled(co, control, iter([batch]), functional.cross_entropy, PLAIN_STEP)
    torch.testing.assert_close(co.bias.detach(), -torch.tensor([-0.75, 0.5, 0.25]))


def test_one_sample_that_batch_norm_cannot_train_on_is_scored_and_left_out():
    co, control, kept = net_with_batch_norm(1), net_with_batch_norm(2), {}
    before = copy.deepcopy(co.state_dict())
    images, labels = one_batch(size=1)
    with torch.no_grad():
        logits = control.eval()(images) + co.eval()(images)
    batches, recipe = repeat((images, labels)), LocalRecipe(2, 0.1)
    scores = train_controlled(co, control, batches, functional.cross_entropy, recipe, momentum=kept)
    expected = functional.cross_entropy(logits, labels).item()
    assert scores == pytest.approx((expected, float(logits.argmax() == labels)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in co.state_dict().items())
    assert kept == {}


def test_the_steps_beside_the_one_left_out_are_those_without_it():
    finals = []
    for places in ([0, 1], [0, 9, 1]):
        co = net_with_batch_norm(1)
        batches = [one_batch(size=1 if place == 9 else 6, seed=place) for place in places]
        train(co, iter(batches), LocalRecipe(len(places), 0.1))
        finals.append(co.state_dict())
    torch.testing.assert_close(finals[0], finals[1], rtol=0, atol=0)


@pytest.mark.parametrize("statistics", ["frozen", "fused", "mixed"])
def test_one_sample_is_a_step_like_any_other_where_the_batch_needs_no_variance(statistics):
    co = net_with_batch_norm(1)
    before = co[3].weight.detach().clone()
    train(co, iter([one_batch(size=1)]), LocalRecipe(1, 0.1, statistics=statistics))
    assert not torch.equal(co[3].weight, before)
