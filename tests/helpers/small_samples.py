"""A catalogue of six items and a few samples of it, made by hand or drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from dccl_flower.data.samples import Samples
from dccl_flower.models.recommender import Catalogue

NAMES = ("wide_deep", "din", "sasrec")
USERS, ITEMS, LENGTH = 5, 6, 4


def small_catalogue() -> Catalogue:
    """Six items in three categories, of two prices; users have an age group of four."""
    features = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]])
    return Catalogue(USERS, (4,), (3, 2), features)


def small_samples() -> Samples:
    """Five samples of four users; the first two have an empty and a full history."""
    return {
        "user": torch.tensor([0, 1, 1, 2, 4]),
        "item": torch.tensor([0, 1, 5, 3, 2]),
        "history": torch.tensor(
            [[-1, -1, -1, -1], [3, 0, 2, 5], [0, 2, 5, 1], [-1, -1, -1, 4], [-1, -1, 2, 2]]
        ),
        "profile": torch.tensor([[0], [3], [3], [1], [2]]),
        "label": torch.tensor([0.0, 1, 0, 1, 1]),
    }


def drawn_samples(count: int, generator: torch.Generator) -> Samples:
    """Draw samples whose histories are of any length up to four.

    A user likes items of the categories in the history; of an empty one, that of the profile.
    """

    def drawn(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=generator)

    places = torch.arange(LENGTH)
    is_padding = places < drawn(LENGTH + 1, count, 1)
    history = drawn(ITEMS, count, LENGTH).masked_fill(is_padding, -1)
    items, users = drawn(ITEMS, count), drawn(USERS, count)
    categories = small_catalogue().features[:, 0]
    wanted = categories[items].unsqueeze(1)
    in_history = ((categories[history] == wanted) & ~is_padding).any(1)
    profiles = (users % 4).unsqueeze(1)
    is_liked = torch.where(is_padding.all(1), (profiles == wanted).squeeze(1), in_history)
    return {
        "user": users,
        "item": items,
        "history": history,
        "profile": profiles,
        "label": is_liked.float(),
    }
