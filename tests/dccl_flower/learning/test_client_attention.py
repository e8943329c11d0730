from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dccl_flower.learning.client_attention import (
    Client,
    Recipe,
    Serving,
    adapted_logits,
    batch_accuracy,
    seen_by,
    take_step,
    train_over_clients,
)
from dccl_flower.seeds import isolated_rng

ALONE = -1.0


class Sum(nn.Module):
    """Gives each image the sum over all that are seen together."""

    def forward(self, features):
        return features.sum(-2, keepdim=True).expand_as(features)


def client_of(values, labels=None):
    """Return a client whose images have one feature each; the backbone says ALONE of all."""
    features = torch.tensor(values, dtype=torch.float32).view(-1, 1)
    labels = torch.zeros(len(features), dtype=torch.long) if labels is None else labels
    return Client(features, torch.full_like(features, ALONE), labels)


def served(values, batch_size=3, cached=-1, fewest=1):
    serving = Serving(batch_size, cached, fewest)
    return adapted_logits(Sum(), client_of(values), serving).flatten().tolist()


def test_a_batch_sees_itself_and_the_last_one_is_filled_up():
    # 1 + 2 + 3, and for the fourth 2 + 3 + 4: the two before it are cached.
    assert served([1, 2, 3, 4]) == [6, 6, 6, 9]
    assert served([1, 2, 3, 4, 5]) == [6, 6, 6, 12, 12]
    assert served([1, 2, 3]) == [6, 6, 6]


def test_one_by_one_an_image_sees_those_before_it():
    assert served([1, 2, 4, 8, 16], cached=2) == [1, 3, 7, 14, 28]
    assert served([1, 2, 4], cached=0) == [1, 2, 4]
    assert served([1, 2], cached=9) == [1, 3]


def test_too_few_images_are_the_backbone_s():
    assert served([1, 2], fewest=3) == [ALONE, ALONE]
    assert served([1, 2, 3, 4], fewest=3) == [6, 6, 6, 9]
    assert served([1, 2, 3], batch_size=2, fewest=3) == [ALONE] * 3
    assert served([1, 2, 4, 8], cached=3, fewest=3) == [ALONE, ALONE, 7, 15]
    assert served([1, 2, 4], cached=1, fewest=3) == [ALONE] * 3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12), st.integers(0, 5), st.integers(1, 4))
def test_windows_are_what_each_image_would_see_by_itself(values, cached, fewest):
    expected = []
    for place in range(len(values)):
        seen = values[max(0, place - cached) : place + 1]
        is_short = len(seen) < fewest
        expected.append(ALONE if is_short else sum(seen))
    assert served(values, cached=cached, fewest=fewest) == expected


def test_serving_leaves_the_backbone_s_logits_as_they_are():
    client = client_of([1, 2, 3])
    adapted_logits(Sum(), client, Serving(3, -1, 1))
    assert client.logits.unique().tolist() == [ALONE]


def test_accuracy_is_over_images_in_batches_of_one_client():
    class SumIsPositive(nn.Module):
        def forward(self, features):
            total = features.sum(0, keepdim=True).expand_as(features)
            return torch.cat([-total, total], 1)

    # Batches of two: (1, -3) is negative, (5) positive; (2, 2) positive.
    clients = [
        client_of([1, -3, 5], torch.tensor([1, 0, 1])),
        client_of([2, 2], torch.tensor([1, 0])),
    ]
    assert batch_accuracy(SumIsPositive(), clients, 2) == pytest.approx(3 / 5)
    assert batch_accuracy(SumIsPositive(), [], 2) == 0


RECIPE = Recipe(batch_size=2, epochs=3, patience=9, lr=0.5, momentum=0.0, max_grad_norm=100.0)


def test_a_step_by_hand():
    module = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(module.weight)
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    # softmax is (1/2, 1/2), so the gradient is x (1/2, -1/2) averaged over the images: x = 3.
    loss = take_step(module, client_of([2, 4], torch.tensor([1, 1])), optimizer, 100.0)
    assert loss == pytest.approx(0.6931, abs=1e-4)
    assert module.weight.flatten().tolist() == pytest.approx([-1.5, 1.5])
    nn.init.zeros_(module.weight)
    take_step(module, client_of([2, 4], torch.tensor([1, 1])), optimizer, 1.0)
    assert module.weight.norm().item() == pytest.approx(1.0, abs=1e-5)
    nn.init.zeros_(module.weight)
    take_step(module, client_of([2, 4], torch.tensor([1, 1])), optimizer, 0.0)
    assert module.weight.flatten().tolist() == pytest.approx([-1.5, 1.5])


def trained(clients, held_out, recipe=RECIPE, seed=0, on_epoch=lambda done, total: None):
    module = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(module.weight)
    generator = torch.Generator().manual_seed(seed)
    with isolated_rng(0, "test"):
        train_over_clients(module, clients, held_out, recipe, generator, on_epoch)
    return module.weight.detach().flatten().tolist()


LEARN = client_of([1, 1, -1, -1], torch.tensor([1, 1, 0, 0]))


def test_training_learns_and_is_the_same_for_a_seed():
    held_out = [client_of([-2, 2], torch.tensor([0, 1]))]
    weights = trained([LEARN, LEARN], held_out)
    assert weights[1] > 0 > weights[0]
    assert weights == trained([LEARN, LEARN], held_out)


def test_the_best_epoch_is_kept_the_start_included_and_patience_ends_it():
    told = []
    wrong = [client_of([-2, 2], torch.tensor([1, 0]))]  # every step makes it worse
    recipe = Recipe(2, 50, 2, 0.5, 0.0, 100.0)
    weights = trained([LEARN], wrong, recipe, on_epoch=lambda *done: told.append(done))
    assert weights == [0.0, 0.0]
    assert told == [(1, 50), (50, 50)]


def test_batches_are_of_one_client_and_stay_the_same():
    seen = []

    class Noting(nn.Linear):
        def forward(self, features):
            if self.training:
                seen.append(features.flatten().tolist())
            return super().forward(features)

    clients = [client_of([1, 2, 3]), client_of([10, 20])]
    generator = torch.Generator().manual_seed(0)
    train_over_clients(Noting(1, 2), clients, [], RECIPE, generator)
    own, other = [[1, 2], [3]], [[10, 20]]
    epochs = [seen[start : start + 3] for start in range(0, 9, 3)]
    assert len(seen) == 9
    assert all(epoch in (own + other, other + own) for epoch in epochs)


def test_what_the_backbone_sees_is_put_together():
    def backbone(images):
        return images.mean((1, 2, 3)).unsqueeze(1), images.flatten(1)[:, :2]

    batches = [
        (torch.ones(2, 1, 2, 2), torch.tensor([0, 1])),
        (torch.zeros(1, 1, 2, 2), torch.tensor([1])),
    ]
    client = seen_by(backbone, batches)
    assert client.features.flatten().tolist() == [1, 1, 0]
    assert client.logits.shape == (3, 2)
    assert client.labels.tolist() == [0, 1, 1]
    parts = client.split([1, 2])
    assert [part.labels.tolist() for part in parts] == [[0], [1, 1]]
    assert client.taken(torch.tensor([2, 0])).features.flatten().tolist() == [0, 1]
