"""Deep Interest Network: of a user's history, what is like the item at hand counts most.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", arXiv 1706.06978.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dccl_flower.data.samples import Samples
from dccl_flower.models.scoring import Catalogue, Change, Embeddings, Recommender, Tower

ATTENTION_WIDTH = 36  # as published


class Din(Recommender):
    """A tower over the item, the history as the item attends to it, and the user."""

    def __init__(
        self, catalogue: Catalogue, *, embedding: int, hidden: tuple[int, ...], user_ids: bool
    ) -> None:
        super().__init__()
        self.hidden_widths, self.width = hidden, hidden[-1]
        self.embedded = Embeddings(catalogue, embedding, user_ids)
        item_width = self.embedded.item_width
        self.attention = TargetAttention(item_width)
        self.tower = Tower(2 * item_width + self.embedded.user_width, hidden)
        self.last = nn.Linear(self.width, 1)

    def represent(self, samples: Samples, change: Change | None = None) -> Tensor:
        history = samples["history"]
        items = self.embedded.of_items(samples["item"])
        interest = self.attention(items, self.embedded.of_items(history), history >= 0)
        inputs = torch.cat([items, interest, self.embedded.of_users(samples)], -1)
        return self.tower(inputs, change)


class TargetAttention(nn.Module):
    """Sum keys, each weighed by what a small network makes of it beside the query.

    The weights are not normalised, as published: how strong an interest is stays visible.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            Tower(4 * width, (ATTENTION_WIDTH,)), nn.Linear(ATTENTION_WIDTH, 1)
        )

    def forward(self, query: Tensor, keys: Tensor, is_key: Tensor) -> Tensor:
        """Return (B, D) for queries (B, D), keys (B, L, D) and a mask (B, L) of those to count."""
        query = query.unsqueeze(1).expand_as(keys)
        weights = self.weigh(torch.cat([query, keys, query - keys, query * keys], -1))
        return (weights * is_key.unsqueeze(-1) * keys).sum(1)
