"""What recommenders are made of: embedded users and items, a tower of layers, one base class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.data.samples import Samples

# Given a hidden layer's number and its output (B, ..., width), returns what goes on in its place.
Change = Callable[[int, Tensor], Tensor]

EMBEDDING_STD = 0.1  # so small that an item never seen in training adds little to a score


@dataclass(frozen=True)
class Catalogue:
    """What a model must know of users and items: categorical codes, numbered from 0 by column.

    ``features`` (num_items, F) int64 are the items' own. Raises ValueError where they are not
    below ``feature_sizes``.
    """

    num_users: int
    profile_sizes: tuple[int, ...]
    feature_sizes: tuple[int, ...]
    features: Tensor

    def __post_init__(self) -> None:
        if self.features.dim() != 2 or self.features.shape[1] != len(self.feature_sizes):
            shape, columns = tuple(self.features.shape), len(self.feature_sizes)
            raise ValueError(f"features of shape {shape}: must be (num_items, {columns})")
        if ((self.features < 0) | (self.features >= torch.tensor(self.feature_sizes))).any():
            raise ValueError(f"features: must be 0 or more, and below {self.feature_sizes}")


class Recommender(nn.Module):
    """Score samples (B): how likely the user of each is to like its item, as a logit.

    ``hidden_widths`` are those of the layers whose output may be changed, ``width`` is that of the
    vector which the linear layer ``last`` makes a logit of.
    """

    hidden_widths: tuple[int, ...]
    width: int
    embedded: Embeddings
    last: nn.Linear

    def represent(self, samples: Samples, change: Change | None = None) -> Tensor:
        """Return the vectors (B, width) before the last layer."""
        raise NotImplementedError

    def forward(self, samples: Samples, change: Change | None = None) -> Tensor:
        """Return the logits (B,); ``change`` acts on every hidden layer after its activation."""
        return self.last(self.represent(samples, change)).squeeze(-1)


class Embeddings(nn.Module):
    """Vectors of ``width`` for every item, feature and profile code, and with ``user_ids`` user.

    The catalogue's table is no part of the state: it is data, which every side has.
    """

    features: Tensor

    def __init__(self, catalogue: Catalogue, width: int, user_ids: bool) -> None:
        super().__init__()
        num_items = len(catalogue.features)
        self.register_buffer("features", catalogue.features, persistent=False)
        self.item_codes = CodeEmbedding((num_items, *catalogue.feature_sizes), width)
        user_sizes = (catalogue.num_users,) if user_ids else ()
        self.user_codes = CodeEmbedding((*catalogue.profile_sizes, *user_sizes), width)
        self.user_ids = user_ids
        self.item_width, self.user_width = self.item_codes.width, self.user_codes.width

    def of_items(self, items: Tensor) -> Tensor:
        """Return (..., item_width): an item's vector, then its features'; zeros for padding."""
        is_item = items >= 0
        known = items.clamp(min=0)
        codes = torch.cat([known.unsqueeze(-1), self.features[known]], -1)
        return self.item_codes(codes) * is_item.unsqueeze(-1)

    def of_users(self, samples: Samples) -> Tensor:
        """Return (B, user_width): the profile's vectors, then the user's own if there is one."""
        own = [samples["user"].unsqueeze(-1)] if self.user_ids else []
        return self.user_codes(torch.cat([samples["profile"], *own], -1))


class CodeEmbedding(nn.Module):
    """Embed codes (..., C), each column with ``sizes[c]`` codes of its own, to (..., C * each)."""

    starts: Tensor

    def __init__(self, sizes: Sequence[int], each: int) -> None:
        super().__init__()
        self.width = len(sizes) * each
        ends = torch.tensor([0, *sizes]).cumsum(0)
        self.register_buffer("starts", ends[:-1], persistent=False)
        self.table = nn.Embedding(int(ends[-1]), each)
        nn.init.normal_(self.table.weight, std=EMBEDDING_STD)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the columns' vectors side by side."""
        return self.table(codes + self.starts).flatten(-2)


class Tower(nn.Module):
    """Linear layers of the given widths, each with a ReLU after it."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        sizes = zip((inputs, *widths), widths, strict=False)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)

    def forward(self, hidden: Tensor, change: Change | None = None) -> Tensor:
        """Return the last layer's output; ``change`` acts on each."""
        for number, layer in enumerate(self.layers):
            hidden = changed(change, number, functional.relu(layer(hidden)))
        return hidden


def changed(change: Change | None, number: int, hidden: Tensor) -> Tensor:
    """Return a hidden layer's output as it goes on."""
    return hidden if change is None else change(number, hidden)
