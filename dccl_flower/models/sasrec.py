"""A small SASRec: the history attends to itself, and its last place tells what comes next.

Kang & McAuley, "Self-Attentive Sequential Recommendation", arXiv 1808.09781.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dccl_flower.data.samples import Samples
from dccl_flower.models.scoring import Catalogue, Change, Embeddings, Recommender, changed

PLACES = 200  # of the history, its latest; as published for dense logs


class SasRec(Recommender):
    """Blocks of causal self-attention, one for each width in ``hidden``, that of its inner layer.

    Their outputs (B, L, embedding) are the hidden layers. An item's vector is the sum of its own
    and its features', and each place has the user's added, so that an empty history is scored by
    the profile. What is represented is the last place's state times the item's vector, entry by
    entry, then the item's bias; the last layer sums at the start, which gives the inner product.
    """

    def __init__(
        self, catalogue: Catalogue, *, embedding: int, hidden: tuple[int, ...], user_ids: bool
    ) -> None:
        super().__init__()
        self.hidden_widths, self.width = (embedding,) * len(hidden), embedding + 1
        self.embedded = Embeddings(catalogue, embedding, user_ids)
        self.places = nn.Parameter(torch.empty(PLACES, embedding))
        nn.init.normal_(self.places, std=0.1)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(embedding, 1, width, 0.0, batch_first=True, norm_first=True)
            for width in hidden
        )
        self.norm = nn.LayerNorm(embedding)
        self.item_bias = nn.Parameter(torch.zeros(len(catalogue.features)))
        self.last = nn.Linear(self.width, 1)
        nn.init.ones_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def represent(self, samples: Samples, change: Change | None = None) -> Tensor:
        items, history = samples["item"], samples["history"][:, -PLACES:]
        hidden = self._summed(self.embedded.of_items(history)) + self.places[-history.shape[1] :]
        hidden = hidden + self._summed(self.embedded.of_users(samples)).unsqueeze(1)
        hides = hidden_keys(history)
        for number, block in enumerate(self.blocks):
            hidden = changed(change, number, block(hidden, src_mask=hides))
        state = self.norm(hidden[:, -1])
        matched = state * self._summed(self.embedded.of_items(items))
        return torch.cat([matched, self.item_bias[items].unsqueeze(1)], -1)

    def _summed(self, vectors: Tensor) -> Tensor:
        return vectors.unflatten(-1, (-1, self.width - 1)).sum(-2)


def hidden_keys(history: Tensor) -> Tensor:
    """Return (B, L, L), true where a place may not see another: later ones and padding.

    Each sees itself, for a place that sees nothing would be NaN.
    """
    length = history.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=history.device)
    later = torch.ones_like(itself).triu(1)
    return (later | (history < 0).unsqueeze(1)) & ~itself
