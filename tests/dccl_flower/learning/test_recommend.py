from __future__ import annotations

from math import exp, log, nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_samples import NAMES, drawn_samples, small_catalogue, small_samples

from dccl_flower.data.samples import count, joined, taken
from dccl_flower.learning.ranking import user_scores
from dccl_flower.learning.recommend import FitRecipe, fit, predict
from dccl_flower.models.recommender import build_recommender
from dccl_flower.seeds import isolated_rng, torch_generator

RECIPE = FitRecipe(epochs=1, batch_size=8, lr=0.1)


def built(name, seed=0):
    with isolated_rng(seed, "test"):
        return build_recommender(name, small_catalogue(), embedding=8, hidden=(16, 8))


def one_number(samples, recipe=RECIPE, weights=None, **options):
    """Fit a logit that is the same for all samples; return it and the last epoch's loss."""
    logit = torch.zeros(1, requires_grad=True)
    weights = None if weights is None else torch.tensor(weights)
    generator = torch_generator(0, "fit")
    loss = fit(
        lambda batch: logit.expand(count(batch)),
        [logit],
        samples,
        recipe,
        generator,
        weights,
        **options,
    )
    return logit.item(), loss


@pytest.mark.parametrize("name", NAMES)
def test_every_model_learns_what_the_history_tells(name):
    model, generator = built(name), torch_generator(0, "samples")
    samples, unseen = drawn_samples(600, generator), drawn_samples(300, generator)
    recipe = FitRecipe(epochs=12, batch_size=32, lr=0.01, max_grad_norm=5.0)
    told = []
    loss = fit(
        model,
        model.parameters(),
        samples,
        recipe,
        generator,
        on_epoch=lambda *d: told.append(d[:2]),
    )
    assert loss < 0.3
    assert user_scores(predict(model, unseen), unseen["label"]).auc > 0.95
    assert told == [(epoch, 12) for epoch in range(1, 13)]


def test_a_fit_is_the_same_for_a_seed_and_leaves_global_generators_alone():
    samples, weights = drawn_samples(40, torch_generator(0, "samples")), []
    before = torch.random.get_rng_state()
    for seed in (1, 1, 2):
        model = built("din")
        fit(model, model.parameters(), samples, RECIPE, torch_generator(seed, "fit"))
        weights.append(model.last.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_only_the_parameters_given_learn():
    model = built("wide_deep")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, model.last.parameters(), small_samples(), RECIPE, torch_generator(0, "fit"))
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed == {"last.weight", "last.bias"}


def test_a_step_and_its_loss_by_hand():
    # At logit 0 the loss is log 2; Adam's first step is the rate against the gradient's sign:
    # the mean of 1/2 - label over labels 0, 1, 0, 1, 1 is -1/10.
    logit, loss = one_number(small_samples())
    assert loss == pytest.approx(log(2))
    assert logit == pytest.approx(0.1, abs=1e-5)
    _, loss = one_number(small_samples(), FitRecipe(2, 8, 0.1))
    assert loss == pytest.approx((3 * log(1 + exp(-0.1)) + 2 * log(1 + exp(0.1))) / 5, abs=1e-6)


def test_weights_are_scaled_to_a_mean_of_one():
    # The two that are not liked weigh 4 of 7, so the logit goes down.
    logit, loss = one_number(small_samples(), weights=[2.0, 1, 2, 1, 1])
    assert loss == pytest.approx(log(2))
    assert logit == pytest.approx(-0.1, abs=1e-5)
    long = FitRecipe(300, 8, 0.1)
    logit, _ = one_number(small_samples(), long, weights=[2.0, 1, 2, 1, 1])
    assert logit == pytest.approx(log(3 / 4), abs=1e-3)
    assert logit == pytest.approx(one_number(small_samples(), long, [20.0, 10, 20, 10, 10])[0])


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.booleans(), min_size=5, max_size=5).filter(any),
    st.sampled_from(NAMES),
    st.integers(1, 6),
)
def test_a_weight_of_zero_leaves_the_sample_out(kept, name, batch_size):
    samples, mask = small_samples(), torch.tensor(kept)
    recipe = FitRecipe(epochs=2, batch_size=batch_size, lr=0.05)
    fitted = []
    for given_samples, weights in ((samples, 3 * mask.float()), (taken(samples, mask), None)):
        model = built(name)
        generator = torch_generator(0, "fit")
        loss = fit(model, model.parameters(), given_samples, recipe, generator, weights)
        fitted.append((loss, predict(model, samples)))
    assert fitted[0][0] == fitted[1][0]
    assert torch.equal(fitted[0][1], fitted[1][1])


def test_what_is_extra_adds_to_the_loss_and_sees_its_batch():
    seen = []

    def extra(batch, logits):
        seen.append((batch["row"].tolist(), logits.shape))
        return 7 + 10 * logits.mean()

    samples = small_samples() | {"row": torch.arange(5)}
    logit, loss = one_number(samples, FitRecipe(1, 3, 0.1), extra=extra)
    assert sorted(seen[0][0] + seen[1][0]) == [0, 1, 2, 3, 4]
    assert [shape for _, shape in seen] == [(3,), (2,)]
    assert logit == pytest.approx(-0.2, abs=1e-2)
    assert 7 < loss < 7 + log(2)


def test_weight_decay_and_clipping_are_taken():
    # Of one class the logit would grow; ten times itself pulls it back.
    liked = taken(small_samples(), torch.tensor([1, 3, 4]))
    free, _ = one_number(liked, FitRecipe(100, 8, 0.1))
    tied, _ = one_number(liked, FitRecipe(100, 8, 0.1, weight_decay=1.0))
    assert free > 2 > tied > 0
    assert tied == pytest.approx(1 / (1 + exp(tied)), abs=1e-2)
    # Adam divides by the gradient's size, save where it is below its epsilon of 1e-8.
    clipped, _ = one_number(liked, FitRecipe(1, 8, 0.1, max_grad_norm=1e-8))
    assert clipped == pytest.approx(0.05, abs=1e-3)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(20)), st.integers(1, 25), st.sampled_from(NAMES))
def test_predictions_follow_their_samples(order, batch_size, name):
    samples = drawn_samples(20, torch_generator(1, "samples"))
    model, order = built(name), torch.tensor(order)
    expected = model(samples).detach()
    found = predict(model, taken(samples, order), batch_size)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected[order])


def test_samples_are_taken_and_joined():
    samples = small_samples()
    first, rest = torch.tensor([4, 0]), torch.tensor([False, True, True, True, False])
    both = joined([taken(samples, first), taken(samples, rest)])
    assert count(both) == 5
    assert both["item"].tolist() == [2, 0, 1, 5, 3]
    assert both["history"][0].tolist() == [-1, -1, 2, 2]


def test_no_samples_have_no_predictions():
    nothing = taken(small_samples(), torch.tensor([], dtype=torch.long))
    assert predict(built("din"), nothing).shape == (0,)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, 1, 1], r"weights of shape \(3,\) for 5 samples: must be one a sample"),
        ([1.0, 1, 1, 1, -1], "weights: must be numbers of 0 or more"),
        ([1.0, 1, 1, 1, nan], "weights: must be numbers of 0 or more"),
        ([0.0] * 5, "fit needs at least one sample, of a weight above 0"),
    ],
)
def test_wrong_weights_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        one_number(small_samples(), weights=weights)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="fit needs at least one sample"):
        one_number(taken(small_samples(), torch.zeros(5, dtype=torch.bool)))


@pytest.mark.parametrize(("key", "value"), [("epochs", 0), ("batch_size", 0), ("lr", 0.0)])
def test_wrong_recipes_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^{key}={value}: must be "):
        FitRecipe(**{"epochs": 1, "batch_size": 1, "lr": 0.1, key: value})
