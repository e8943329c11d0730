from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_samples import ITEMS, LENGTH, NAMES, drawn_samples, small_catalogue, small_samples
from torch import nn

from dccl_flower.data.samples import taken
from dccl_flower.models.din import TargetAttention
from dccl_flower.models.recommender import Catalogue, build_recommender
from dccl_flower.models.sasrec import PLACES, hidden_keys
from dccl_flower.models.scoring import CodeEmbedding, Embeddings
from dccl_flower.models.wide_deep import mean_of_items
from dccl_flower.seeds import isolated_rng, torch_generator

every_model = pytest.mark.parametrize("name", NAMES)
WIDTH = 4


class Made(nn.Module):
    """A module of a function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def built(name, catalogue=None, **options):
    """A model in which no weight is zero, so that none hides a mistake."""
    options = {"embedding": WIDTH, "hidden": (6, 5), **options}
    with isolated_rng(0, "test"):
        model = build_recommender(name, catalogue or small_catalogue(), **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def uneven(hidden):
    return hidden + torch.arange(hidden.shape[-1])


def embeddings(width=WIDTH, user_ids=False):
    with isolated_rng(0, "test"):
        return Embeddings(small_catalogue(), width, user_ids)


@every_model
@pytest.mark.parametrize("user_ids", [False, True])
def test_a_logit_is_the_last_layers_of_what_is_represented(name, user_ids):
    model, samples = built(name, user_ids=user_ids), small_samples()
    vectors, logits = model.represent(samples), model(samples)
    assert vectors.shape == (5, model.width)
    assert logits.shape == (5,)
    torch.testing.assert_close(logits, model.last(vectors).squeeze(1))
    assert logits.isfinite().all()


@every_model
def test_without_a_change_the_logits_are_those_of_one_that_does_nothing(name):
    model, samples = built(name), small_samples()
    assert torch.equal(model(samples), model(samples, lambda number, hidden: hidden))


@every_model
def test_a_change_sees_every_hidden_layer_and_what_it_returns_goes_on(name):
    model, samples = built(name), small_samples()
    seen = []

    def note(number, hidden):
        seen.append((number, hidden.shape[0], hidden.shape[-1]))
        return hidden

    model.represent(samples, note)
    assert seen == [(j, 5, width) for j, width in enumerate(model.hidden_widths)]
    logits = model(samples)
    for layer in range(len(model.hidden_widths)):
        moved = model(samples, lambda j, hidden, at=layer: uneven(hidden) if j == at else hidden)
        assert (moved != logits).all()
    same = model(taken(samples, torch.tensor([0, 0])), lambda j, hidden: hidden * 0 + 1)
    assert same[0] == same[1]


@pytest.mark.parametrize("name", ["din", "wide_deep"])
def test_towers_are_changed_after_their_activation(name):
    outputs = []
    built(name)(small_samples(), lambda number, hidden: outputs.append(hidden) or hidden)
    assert all((hidden >= 0).all() for hidden in outputs)
    assert any((hidden == 0).any() for hidden in outputs)


@pytest.mark.parametrize("name", ["din", "wide_deep"])
def test_the_last_hidden_layer_is_what_is_represented(name):
    model = built(name)
    vectors = model.represent(small_samples(), lambda j, hidden: hidden * 0 + j)
    assert (vectors[:, :5] == 1).all()


@every_model
@pytest.mark.parametrize("user_ids", [False, True])
def test_every_weight_learns(name, user_ids):
    model = built(name, user_ids=user_ids)
    samples = drawn_samples(200, torch_generator(0, "samples"))
    model(samples).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for table in (model.embedded.item_codes.table, model.embedded.user_codes.table):
        assert table.weight.grad.abs().sum(1).gt(0).all()


@every_model
def test_the_table_of_features_is_no_part_of_the_state(name):
    model = built(name)
    other = Catalogue(5, (4,), (3, 2), small_catalogue().features.flip(0))
    swapped = built(name, other)
    swapped.load_state_dict(model.state_dict())
    assert not torch.allclose(swapped(small_samples()), model(small_samples()))


@every_model
def test_only_with_user_ids_do_users_of_one_profile_differ(name):
    samples = small_samples()
    other = samples | {"user": samples["user"].flip(0)}
    model = built(name)
    assert torch.equal(model(samples), model(other))
    model = built(name, user_ids=True)
    assert not torch.allclose(model(samples), model(other))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(NAMES), st.integers(0, 99), st.integers(1, 5))
def test_more_padding_in_front_changes_nothing(name, seed, more):
    model, samples = built(name), drawn_samples(6, torch_generator(seed, "samples"))
    padding = torch.full((6, more), -1)
    longer = samples | {"history": torch.cat([padding, samples["history"]], 1)}
    torch.testing.assert_close(model(longer), model(samples))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(NAMES), st.integers(0, 99))
def test_samples_are_scored_one_by_one(name, seed):
    model, samples = built(name), drawn_samples(5, torch_generator(seed, "samples"))
    alone = [model(taken(samples, torch.tensor([place]))) for place in range(5)]
    torch.testing.assert_close(model(samples), torch.cat(alone))


@every_model
def test_an_empty_history_has_a_score_and_gradients_without_nan(name):
    model, samples = built(name), small_samples()
    samples["history"] = torch.full((5, LENGTH), -1)
    logits = model(samples)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@every_model
def test_items_and_users_without_codes_are_enough(name):
    catalogue = Catalogue(5, (), (), torch.zeros(ITEMS, 0, dtype=torch.long))
    samples = small_samples() | {"profile": torch.zeros(5, 0, dtype=torch.long)}
    assert built(name, catalogue)(samples).isfinite().all()


def test_the_wide_part_by_hand():
    model, samples = built("wide_deep"), small_samples()
    weights = torch.arange(26.0)  # six items, 3 x 4 of category and age, 2 x 4 of price and age
    with torch.no_grad():
        model.wide.table.weight.copy_(weights.unsqueeze(1))
    # Item 5 is of category 2 and price 1, its user of age 3: 5 + (6 + 2 * 4 + 3) + (18 + 4 + 3).
    assert model.represent(samples)[:, -1].tolist()[2] == 5 + 17 + 25
    # Item 0 of category 0 and price 0, age 0: the first weight of each.
    assert model.represent(samples)[:, -1].tolist()[0] == 0 + 6 + 18


def test_the_wide_part_starts_at_nothing_and_adds_as_it_is():
    with isolated_rng(0, "test"):
        model = build_recommender("wide_deep", small_catalogue())
    assert not model.represent(small_samples())[:, -1].any()
    before = model(small_samples())
    with torch.no_grad():
        model.wide.table.weight.add_(1.0)
    torch.testing.assert_close(model(small_samples()), before + 3)


def test_the_mean_of_a_history_is_over_what_is_in_it():
    embedded = embeddings()
    means = mean_of_items(embedded, small_samples()["history"])
    vectors = embedded.of_items(torch.arange(ITEMS))
    assert not means[0].any()
    torch.testing.assert_close(means[1], vectors[[3, 0, 2, 5]].mean(0))
    torch.testing.assert_close(means[3], vectors[4])
    torch.testing.assert_close(means[4], vectors[2])


def test_attention_sums_keys_by_what_the_network_makes_of_them():
    attention = TargetAttention(2)
    # In place of the network the inner product: the last two of q, k, q - k, q * k.
    attention.weigh = Made(lambda inputs: inputs[..., -2:].sum(-1, keepdim=True))
    query = torch.tensor([[1.0, 2]])
    keys = torch.tensor([[[9.0, 9], [1, 1], [0, 3]]])
    found = attention(query, keys, torch.tensor([[False, True, True]]))
    # 3 (1, 1) + 6 (0, 3)
    assert found.tolist() == [[3.0, 21.0]]


def test_attention_sees_query_key_difference_and_product():
    attention, seen = TargetAttention(1), []
    attention.weigh = Made(lambda inputs: seen.append(inputs) or inputs[..., :1])
    attention(torch.tensor([[2.0]]), torch.tensor([[[5.0]]]), torch.tensor([[True]]))
    assert seen[0].flatten().tolist() == [2, 5, -3, 10]


def test_a_place_sees_itself_and_what_was_before_but_no_padding():
    hidden = hidden_keys(torch.tensor([[-1, 4, 2], [-1, -1, -1]]))
    assert (~hidden[0]).int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert (~hidden[1]).int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_sasrec_is_causal():
    samples, states = small_samples(), []
    for last in (5, 0):
        samples["history"][1, -1] = last
        built("sasrec")(samples, lambda j, hidden: states.append(hidden[1]) or hidden)
    first, second = states[:2], states[2:]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one[:-1], other[:-1])
        assert not torch.allclose(one[-1], other[-1])


def test_sasrec_starts_as_the_inner_product_and_the_bias():
    with isolated_rng(0, "test"):
        model = build_recommender("sasrec", small_catalogue(), embedding=WIDTH)
    samples, states = small_samples(), []
    with torch.no_grad():
        model.item_bias.copy_(torch.arange(6.0))
    logits = model(samples, lambda j, hidden: states.append(hidden) or hidden)
    state = model.norm(states[-1][:, -1])
    items = model.embedded.of_items(samples["item"]).view(5, 3, WIDTH).sum(1)
    torch.testing.assert_close(logits, (state * items).sum(1) + samples["item"])


def test_sasrec_knows_the_order_and_overlooks_what_is_too_long_ago():
    model, samples = built("sasrec"), small_samples()
    turned = samples | {"history": samples["history"][:, [0, 2, 1, 3]]}
    assert not torch.allclose(model(turned)[1], model(samples)[1])
    long = torch.arange(PLACES + 1).remainder(ITEMS).expand(5, -1)
    other = long.clone()
    other[:, 0] = 3
    assert torch.equal(*(model(samples | {"history": history}) for history in (long, other)))


def test_codes_are_apart_by_column():
    table = CodeEmbedding((3, 2), 1)
    with torch.no_grad():
        table.table.weight.copy_(torch.arange(5.0).unsqueeze(1))
    assert table.width == 2
    assert table(torch.tensor([[0, 0], [2, 1]])).tolist() == [[0, 3], [2, 4]]


def test_items_are_embedded_with_their_features_and_padding_is_zeros():
    embedded = embeddings(width=1, user_ids=True)
    with torch.no_grad():
        embedded.item_codes.table.weight.copy_(torch.arange(1.0, 12).unsqueeze(1))
        embedded.user_codes.table.weight.copy_(torch.arange(9.0).unsqueeze(1))
    found = embedded.of_items(torch.tensor([[3, -1]]))
    # Item 3 is of category 1 and price 1.
    assert found.tolist() == [[[1 + 3, 1 + 6 + 1, 1 + 9 + 1], [0, 0, 0]]]
    assert embedded.of_users(small_samples()).tolist()[4] == [2, 4 + 4]
    assert (embedded.item_width, embedded.user_width) == (3, 2)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.zeros(4, 1), r"features of shape \(4, 1\): must be \(num_items, 2\)"),
        (torch.zeros(4), r"features of shape \(4,\)"),
        (torch.tensor([[0, 2]]), r"features: must be 0 or more, and below \(3, 2\)"),
        (torch.tensor([[-1, 0]]), r"features: must be 0 or more"),
    ],
)
def test_features_that_are_no_codes_are_refused(features, said):
    with pytest.raises(ValueError, match=said):
        Catalogue(5, (4,), (3, 2), features)


def test_an_unknown_name_and_widths_of_nothing_are_refused():
    with pytest.raises(ValueError, match="recommender=lstm: must be one of din, sasrec, wide_deep"):
        build_recommender("lstm", small_catalogue())
    for options in ({"embedding": 0}, {"hidden": ()}, {"hidden": (4, 0)}):
        with pytest.raises(ValueError, match="must be widths of 1 or more"):
            build_recommender("din", small_catalogue(), **options)
