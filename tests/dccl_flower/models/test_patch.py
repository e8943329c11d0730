from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dccl_flower.models.patch import Encoder, MetaPatch, WholePatches
from dccl_flower.seeds import isolated_rng, torch_generator

WIDTHS = (6, 5, 4)


class Layers(nn.Module):
    """A linear layer and ReLU for each of the widths, each of them to be patched, then a score."""

    def __init__(self, widths=WIDTHS):
        super().__init__()
        inputs = (3, *widths[:-1])
        pairs = zip(inputs, widths, strict=True)
        self.hidden = nn.ModuleList(nn.Linear(size, width) for size, width in pairs)
        self.last = nn.Linear(widths[-1], 1)

    def forward(self, features, change=lambda layer, hidden: hidden):
        for number, layer in enumerate(self.hidden):
            features = change(number, layer(features).relu())
        return self.last(features).squeeze(-1)


def built(kind=MetaPatch, widths=WIDTHS, points=(0, 2), bottleneck=2, seed=0, **options):
    with isolated_rng(seed, "patch"):
        return kind(widths, points, bottleneck, **options)


def layers(seed=0, widths=WIDTHS):
    with isolated_rng(seed, "layers"):
        return Layers(widths)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch_generator(seed, "normal"))


def flat(down, down_bias, up, up_bias):
    return torch.tensor([*chain(*down), *down_bias, *chain(*up), *up_bias])


def test_a_patch_by_hand():
    """Width 2, bottleneck 1, and a vector of one number."""
    patch = MetaPatch([2], [0], bottleneck=1, rank=1)
    with torch.no_grad():
        patch.origin_0.copy_(flat([[1.0], [-1.0]], [0.0], [[0.0, 0.0]], [0.0, 0.0]))
        patch.bases[0][:, 0] = flat([[0.5], [0.0]], [0.25], [[1.0, 2.0]], [0.0, -0.5])
    # With v = 2 down is (2, -1) with bias 0.5, and up (2, 4) with bias (0, -1).
    changed = patch.change(torch.tensor([2.0]))(0, torch.tensor([[1.0, 3.0], [0.0, 0.5]]))
    up = torch.tanh(torch.tensor(0.5)).item()  # of 2 - 3 + 0.5 it is minus this; of 0 it is 0
    expected = torch.tensor([[1 - 2 * up, 3 - 4 * up - 1], [0.0, 0.5 - 1]])
    torch.testing.assert_close(changed, expected)


@settings(deadline=None, max_examples=30)
@given(rank=st.integers(1, 64), per_patch=st.booleans(), seed=st.integers(0, 999))
def test_at_the_start_nothing_is_changed_and_yet_there_is_a_way_to_go(rank, per_patch, seed):
    widths = (12, 10, 8)
    model = layers(seed, widths)
    patch = built(widths=widths, bottleneck=4, seed=seed, rank=rank, per_patch=per_patch)
    features, vector = normal(9, 3, seed=seed), patch.start().requires_grad_()
    logits = model(features, patch.change(vector))
    assert torch.equal(logits, model(features))
    logits.square().sum().backward()
    assert vector.grad.isfinite().all()
    assert vector.grad.norm() > 0


@settings(deadline=None, max_examples=30)
@given(rank=st.integers(1, 14), seed=st.integers(0, 999))
def test_bases_start_orthonormal_and_random(rank, seed):
    patch, other = (built(rank=rank, seed=seed + more) for more in (0, 1))
    for basis in patch.bases:
        torch.testing.assert_close(basis.T @ basis, torch.eye(rank), atol=1e-5, rtol=0)
    assert not torch.equal(patch.bases[0], other.bases[0])


@pytest.mark.parametrize("per_patch", [False, True])
def test_the_cloud_learns_the_bases_alone(per_patch):
    patch = built(rank=3, per_patch=per_patch)
    sizes = [2 * 2 * width + 2 + width for width in (6, 4)]
    assert [tuple(p.shape) for p in patch.parameters()] == [(size, 3) for size in sizes]
    assert set(patch.state_dict()) == {"bases.0", "bases.1", "origin_0", "origin_2"}
    for (name, origin), size, width in zip(patch.named_buffers(), sizes, (6, 4), strict=True):
        assert origin.shape == (size,), name
        down, rest = origin.split([2 * width, size - 2 * width])
        assert down.count_nonzero() == len(down)
        assert not rest.any()


@pytest.mark.parametrize("per_patch", [False, True])
@pytest.mark.parametrize("shape", [(5,), (5, 7), (1,), (0,)])
def test_a_vector_a_sample_is_as_one_sample_after_another(per_patch, shape):
    patch = built(rank=3, per_patch=per_patch)
    vectors, features = normal(shape[0], patch.vector_size), normal(*shape, 4)
    together = patch.change(vectors)(2, features)
    assert together.shape == features.shape
    for own, vector, result in zip(features, vectors, together, strict=True):
        torch.testing.assert_close(patch.change(vector)(2, own.unsqueeze(0))[0], result)


@pytest.mark.parametrize("shape", [(5,), (5, 7)])
def test_one_vector_is_for_all_samples(shape):
    patch = built(rank=3)
    vector, features = normal(3), normal(*shape, 6)
    shared = patch.change(vector)(0, features)
    torch.testing.assert_close(shared, patch.change(vector.expand(5, 3))(0, features))
    assert not torch.allclose(shared, features)


def test_layers_that_are_no_points_are_left_alone():
    features = normal(4, 5)
    for change in (built(rank=3).change(normal(3)), built(WholePatches).change()):
        assert change(1, features) is features


def test_a_part_of_the_vector_for_each_patch_or_the_whole_for_all():
    whole, parts = built(rank=3), built(rank=3, per_patch=True)
    assert (whole.vector_size, parts.vector_size) == (3, 6)
    assert parts.start().tolist() == [0.0] * 6
    first, second = normal(3), normal(3, seed=2)
    change = parts.change(torch.cat([first, second]))
    for point, own, width in [(0, first, 6), (2, second, 4)]:
        features = normal(5, width)
        torch.testing.assert_close(
            change(point, features), whole.change(own)(point, features), atol=0, rtol=0
        )


def test_a_basis_as_wide_as_the_weights_reaches_every_patch():
    """With full rank some vector gives the very patches whose weights were learnt whole."""
    most = 2 * 2 * 4 + 2 + 4
    patch = built(points=(2,), rank=most)
    whole = built(WholePatches, points=(2,), seed=5)
    wanted = normal(most)
    with torch.no_grad():
        whole.weights[0].copy_(wanted)
    vector = patch.bases[0].T @ (wanted - patch.origin_2)
    features = normal(5, 4, seed=3)
    expected = whole.change()(2, features)
    torch.testing.assert_close(patch.change(vector)(2, features), expected, atol=1e-5, rtol=1e-5)


def test_whole_patches_start_as_nothing_and_learn_all_their_weights():
    model, whole = layers(), built(WholePatches)
    features = normal(9, 3)
    assert sum(p.numel() for p in whole.parameters()) == sum(4 * w + 2 + w for w in (6, 4))
    logits = model(features, whole.change())
    assert torch.equal(logits, model(features))
    logits.square().sum().backward()
    assert all(weights.grad.any() for weights in whole.weights)
    with torch.no_grad():
        for weights in whole.weights:
            weights.add_(0.1)
    assert not torch.equal(model(features, whole.change()), logits)


def test_a_patch_comes_back_from_its_state():
    patch, other = built(rank=3), built(rank=3, seed=1)
    other.load_state_dict(patch.state_dict())
    vector, features = normal(3), normal(5, 6)
    assert torch.equal(patch.change(vector)(0, features), other.change(vector)(0, features))


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"rank": 0}, "rank=0: must be 1..22, the weights of the smallest patch"),
        ({"rank": 23}, "rank=23: must be 1..22, the weights of the smallest patch"),
        ({"points": ()}, "points=[]: must be different ones of 0..2"),
        ({"points": (0, 3)}, "points=[0, 3]: must be different ones of 0..2"),
        ({"points": (-1,)}, "points=[-1]: must be different ones of 0..2"),
        ({"points": (1, 1)}, "points=[1, 1]: must be different ones of 0..2"),
        ({"bottleneck": 0}, "bottleneck=0: must be 1 or more"),
    ],
)
def test_what_cannot_be_built_is_refused(options, refusal):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        built(**{"rank": 2, **options})
    assert str(caught.value) == refusal


@pytest.mark.parametrize("shape", [(2,), (4,), (7, 6)])
def test_a_vector_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=f"a vector of size {shape[-1]}, not 3"):
        built(rank=3).change(torch.zeros(shape))


def encoder(vector_size=3, width=4, profile_sizes=(2, 5)):
    with isolated_rng(0, "encoder"):
        return Encoder(vector_size, width, profile_sizes, embedding=2, hidden=6)


PROFILES = torch.tensor([[0, 4], [1, 0], [1, 4]])


def test_an_encoder_starts_as_the_identity_and_can_learn():
    module, vectors = encoder(), normal(3, 3)
    encoded = module(vectors, normal(3, 4), PROFILES)
    assert torch.equal(encoded, vectors)
    encoded.sum().backward()
    assert module.last.weight.grad.any()


def test_an_encoder_sees_vector_sample_and_profile():
    module = encoder()
    nn.init.ones_(module.last.weight)
    vectors, represented = torch.zeros(3, 3), normal(1, 4).expand(3, 4)
    own = module(vectors, represented, PROFILES)
    assert len(own.unique(dim=0)) == 3
    assert not torch.allclose(own, module(vectors, represented + 1, PROFILES))
    assert not torch.allclose(own + 1, module(vectors + 1, represented, PROFILES))


def test_an_encoder_does_without_profiles():
    module = encoder(profile_sizes=())
    vectors = normal(3, 3)
    assert torch.equal(module(vectors, normal(3, 4), PROFILES[:, :0]), vectors)


def test_profiles_of_another_number_of_columns_are_refused():
    with pytest.raises(ValueError, match="zip"):
        encoder()(normal(3, 3), normal(3, 4), PROFILES[:, :1])
