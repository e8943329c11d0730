"""Wide & Deep: a linear model that remembers, and beside it a network that generalises.

Cheng et al., "Wide & Deep Learning for Recommender Systems", arXiv 1606.07792.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from dccl_flower.data.samples import Samples
from dccl_flower.models.scoring import (
    Catalogue,
    Change,
    CodeEmbedding,
    Embeddings,
    Recommender,
    Tower,
)


class WideAndDeep(Recommender):
    """The deep part sees the item, the mean of the history, and the user.

    The wide part is one weight an item and one for every pair of an item's feature and a user's
    profile code; they start at zero. Their sum is the last entry of what is represented, and adds
    to the logit as it is at the start.
    """

    def __init__(
        self, catalogue: Catalogue, *, embedding: int, hidden: tuple[int, ...], user_ids: bool
    ) -> None:
        super().__init__()
        self.hidden_widths, self.width = hidden, hidden[-1] + 1
        self.embedded = Embeddings(catalogue, embedding, user_ids)
        inputs = 2 * self.embedded.item_width + self.embedded.user_width
        self.deep = Tower(inputs, hidden)
        self.profile_sizes = catalogue.profile_sizes
        pairs = [f * p for f, p in product(catalogue.feature_sizes, self.profile_sizes)]
        self.wide = CodeEmbedding((len(catalogue.features), *pairs), 1)
        nn.init.zeros_(self.wide.table.weight)
        self.last = nn.Linear(self.width, 1)
        nn.init.ones_(self.last.weight[:, -1:])

    def represent(self, samples: Samples, change: Change | None = None) -> Tensor:
        items = self.embedded.of_items(samples["item"])
        past = mean_of_items(self.embedded, samples["history"])
        inputs = torch.cat([items, past, self.embedded.of_users(samples)], -1)
        return torch.cat([self.deep(inputs, change), self._remembered(samples)], -1)

    def _remembered(self, samples: Samples) -> Tensor:
        items = samples["item"]
        sizes = torch.tensor(self.profile_sizes, dtype=torch.int64, device=items.device)
        crosses = self.embedded.features[items].unsqueeze(2) * sizes  # (B, F, P)
        pairs = (crosses + samples["profile"].unsqueeze(1)).flatten(1)
        return self.wide(torch.cat([items.unsqueeze(1), pairs], 1)).sum(1, keepdim=True)


def mean_of_items(embedded: Embeddings, history: Tensor) -> Tensor:
    """Return (B, item_width) for histories (B, L); zeros where one is empty."""
    lengths = (history >= 0).sum(1, keepdim=True)
    return embedded.of_items(history).sum(1) / lengths.clamp(min=1)
