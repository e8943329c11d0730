from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_samples import NAMES, USERS, drawn_samples, small_catalogue
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional

from dccl_flower.learning.metapatch import (
    Distillation,
    distil_model,
    distil_patches,
    divergence,
    fit_vector,
    pretrain_patches,
    proxy,
)
from dccl_flower.learning.recommend import FitRecipe, fit
from dccl_flower.models.patch import Encoder, MetaPatch
from dccl_flower.models.recommender import build_recommender
from dccl_flower.seeds import isolated_rng, torch_generator

COUNT = 72
RECIPE = FitRecipe(epochs=30, batch_size=24, lr=0.05)
STILL = replace(RECIPE, epochs=1, lr=1e-12, batch_size=COUNT)


@pytest.fixture(params=NAMES)
def model(request):
    with isolated_rng(0, "model"):
        return build_recommender(request.param, small_catalogue(), embedding=6, hidden=(8, 6))


@pytest.fixture
def patch(model):
    with isolated_rng(0, "patch"):
        return MetaPatch(model.hidden_widths, [0, 1], bottleneck=3, rank=4)


@pytest.fixture
def encoder(model, patch):
    with isolated_rng(0, "encoder"):
        profile_sizes = small_catalogue().profile_sizes
        return Encoder(patch.vector_size, model.width, profile_sizes, embedding=2, hidden=8)


@pytest.fixture
def samples():
    """Users of even profiles like whatever they are shown, the others nothing."""
    drawn = drawn_samples(COUNT, torch_generator(0, "samples"))
    return drawn | {"label": 1.0 - drawn["profile"][:, 0] % 2}


def generator(seed=0):
    return torch_generator(seed, "fit")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "normal"))


def cross_entropy(logits, samples):
    return functional.binary_cross_entropy_with_logits(logits, samples["label"]).item()


def bits(*modules):
    """A copy of all that modules hold, and whether each parameter learns."""
    states = [deepcopy(module.state_dict()) for module in modules]
    return states, [p.requires_grad for module in modules for p in module.parameters()]


def assert_untouched(before, *modules):
    for old, new in zip(before[0], (module.state_dict() for module in modules), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old.keys() | new.keys())
    parameters = [p for module in modules for p in module.parameters()]
    assert before[1] == [p.requires_grad for p in parameters]
    assert all(p.grad is None for p in parameters)


def test_a_divergence_by_hand():
    """Of 1/2 from 3/4: half of ln 2/3 and half of ln 2; the other way 3/4 ln 3/2 - 1/4 ln 2."""
    even, likely = torch.tensor([0.0]), torch.tensor([math.log(3)])
    assert divergence(even, likely).item() == pytest.approx(math.log(4 / 3) / 2)
    assert divergence(likely, even).item() == pytest.approx(
        0.75 * math.log(1.5) - 0.25 * math.log(2)
    )


logits = st.lists(st.floats(-12, 12, width=32), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(logits, st.integers(0, 99))
def test_a_divergence_is_torchs_own_and_learns_on_both_sides(values, seed):
    first = torch.tensor(values, dtype=torch.float64)
    second = first + normal(len(values), seed=seed).double()
    expected = kl_divergence(Bernoulli(logits=first), Bernoulli(logits=second))
    torch.testing.assert_close(divergence(first, second), expected, atol=1e-10, rtol=1e-6)
    assert not divergence(first, first).any()
    sides = first.requires_grad_(), second.requires_grad_()
    assert torch.autograd.gradcheck(divergence, sides)


def test_a_divergence_of_sure_sides_is_finite():
    sure = torch.tensor([300.0, -300.0])
    assert divergence(sure, -sure).tolist() == [300.0, 300.0]


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_a_term_is_beta_times_the_mean_in_its_direction(direction):
    teacher, student = normal(5), normal(5, seed=1)
    sides = (teacher, student) if direction == "teacher_student" else (student, teacher)
    term = Distillation(0.3, direction).term({"teacher": teacher}, student)
    torch.testing.assert_close(term, 0.3 * divergence(*sides).mean())


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"beta": -0.1}, "beta=-0.1: must be a number of 0 or more"),
        ({"beta": math.inf}, "beta=inf: must be a number of 0 or more"),
        ({"beta": math.nan}, "beta=nan: must be a number of 0 or more"),
        ({"direction": "both"}, "direction=both: must be teacher_student or student_teacher"),
    ],
)
def test_settings_out_of_bounds_are_refused(options, refusal):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Distillation(**options)
    assert str(caught.value) == refusal


def own_samples(samples, user):
    return {name: column[samples["user"] == user] for name, column in samples.items()}


def test_a_vector_fits_a_device_and_all_else_stays_bit_by_bit(model, patch, samples):
    before, own = bits(model, patch), own_samples(samples, 0)
    recipe = replace(RECIPE, lr=0.5)
    vector = fit_vector(model, patch, own, recipe, generator())
    assert_untouched(before, model, patch)
    assert vector.shape == (4,)
    assert not vector.requires_grad
    fitted = cross_entropy(model(own, patch.change(vector)), own)
    assert fitted < 0.75 * cross_entropy(model(own), own)
    assert torch.equal(vector, fit_vector(model, patch, own, recipe, generator()))


def test_a_vector_goes_on_from_its_start(model, patch, samples):
    start = normal(4)
    given_start = start.clone()
    torch.testing.assert_close(fit_vector(model, patch, samples, STILL, generator(), start), start)
    further = fit_vector(model, patch, samples, RECIPE, generator(), start)
    assert not torch.equal(further, start)
    assert torch.equal(start, given_start)
    torch.testing.assert_close(fit_vector(model, patch, samples, STILL, generator()), patch.start())


def test_gradients_are_back_after_a_fit_that_fails(model, patch, samples):
    before = bits(model, patch)
    with pytest.raises(KeyError):
        fit_vector(model, patch, {"label": samples["label"]}, RECIPE, generator())
    assert_untouched(before, model, patch)


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_the_first_stage_minimises_labels_and_beta_of_the_divergence(model, samples, direction):
    chosen, teacher = Distillation(0.7, direction), normal(COUNT)
    logits = model(samples)
    expected = cross_entropy(logits, samples) + chosen.term({"teacher": teacher}, logits).item()
    loss = distil_model(model, samples, teacher, STILL, chosen, generator())
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_first_stage_follows_teachers_and_without_beta_the_labels_alone(model, samples):
    teacher = 2 - 4 * samples["label"]  # the teachers say the contrary of the labels
    plain, deaf, led = (deepcopy(model) for _ in range(3))
    fit(plain, plain.parameters(), samples, RECIPE, generator())
    distil_model(deaf, samples, teacher, RECIPE, Distillation(beta=0), generator())
    distil_model(led, samples, teacher, RECIPE, Distillation(beta=50.0), generator())
    torch.testing.assert_close(deaf.state_dict(), plain.state_dict())
    assert cross_entropy(deaf(samples), samples) < 0.1
    assert divergence(teacher, led(samples)).mean() < 0.1


def test_the_samples_given_are_not_changed(model, patch, encoder, samples):
    names, teacher = set(samples), normal(COUNT)
    vectors = normal(COUNT, 4)
    distil_model(model, samples, teacher, STILL, Distillation(), generator())
    distil_patches(
        model, patch, encoder, samples, vectors, teacher, STILL, Distillation(), generator()
    )
    assert set(samples) == names


def test_a_proxy_begins_as_the_devices_own_model(model, patch, encoder, samples):
    vectors = normal(USERS, 4)
    answers = proxy(model, patch, encoder)(samples | {"vector": vectors[samples["user"]]})
    for user in range(USERS):
        own = samples["user"] == user
        device = model(own_samples(samples, user), patch.change(vectors[user]))
        torch.testing.assert_close(answers[own], device)


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
@pytest.mark.parametrize("patches_see_labels", [True, False])
def test_the_second_stage_minimises_what_is_asked(
    model, patch, encoder, samples, direction, patches_see_labels
):
    chosen = Distillation(0.7, direction, patches_see_labels)
    teacher, vectors = normal(COUNT), normal(COUNT, 4)
    logits = proxy(model, patch, encoder)(samples | {"vector": vectors})
    expected = chosen.term({"teacher": teacher}, logits).item()
    expected += cross_entropy(logits, samples) if patches_see_labels else 0
    loss = distil_patches(
        model, patch, encoder, samples, vectors, teacher, STILL, chosen, generator()
    )
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_labels_the_second_stage_does_not_depend_on_them(model, patch, encoder, samples):
    chosen, results = Distillation(patches_see_labels=False), []
    teacher, vectors = normal(COUNT), normal(COUNT, 4)
    for labels in (samples["label"], 1 - samples["label"]):
        bases, refined = deepcopy(patch), deepcopy(encoder)
        relabelled = samples | {"label": labels}
        recipe = replace(RECIPE, epochs=2)
        distil_patches(
            model, bases, refined, relabelled, vectors, teacher, recipe, chosen, generator()
        )
        results.append(bases.state_dict())
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)


def test_the_second_stage_learns_bases_and_encoder_and_leaves_the_model(
    model, patch, encoder, samples
):
    teacher, vectors = 4 * samples["label"] - 2, torch.zeros(COUNT, 4)
    before, old_patch, old_encoder = bits(model), deepcopy(patch), deepcopy(encoder)
    distil_patches(
        model, patch, encoder, samples, vectors, teacher, RECIPE, Distillation(), generator()
    )
    assert_untouched(before, model)
    for basis, old in zip(patch.bases, old_patch.bases, strict=True):
        assert not torch.equal(basis, old)
    for name, origin in patch.named_buffers():
        assert torch.equal(origin, old_patch.get_buffer(name))
    for weights, old in zip(encoder.parameters(), old_encoder.parameters(), strict=True):
        assert not torch.equal(weights, old)
    # Vectors of users that never learnt are at the start; profile and sample make up for them.
    answers = proxy(model, patch, encoder)(samples | {"vector": vectors})
    assert divergence(teacher, answers).mean() < 0.5 * divergence(teacher, model(samples)).mean()


def test_pretrained_bases_span_how_users_differ(model, patch, samples):
    """What a user likes can be told by nothing but who it is; a fresh vector then tells it."""
    likes = 1.0 * (samples["user"] % 2 == 0)
    told_by_none = samples | {"profile": torch.zeros_like(samples["profile"]), "label": likes}
    even = {name: tensor[likes == 1] for name, tensor in told_by_none.items()}
    before, drawn = bits(model), [basis.detach().clone() for basis in patch.bases]
    quick = replace(RECIPE, epochs=2)

    def loss():
        vector = fit_vector(model, patch, even, quick, generator())
        return cross_entropy(model(even, patch.change(vector)).detach(), even)

    with_drawn = loss()
    pretrain_patches(model, patch, USERS, told_by_none, RECIPE, generator())
    assert loss() < 0.8 * with_drawn
    assert_untouched(before, model)
    assert all(not torch.equal(old, new) for old, new in zip(drawn, patch.bases, strict=True))
