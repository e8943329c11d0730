"""Attention of a client's images to each other, between a feature extractor and the classifier.

Inter-client-image attention (Yan et al., arXiv 2211.06276): what a client's other images show tells
which classes it holds, and so what an image of it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.config import ConfError


class ImageAttention(nn.Module):
    """Map features (..., B, D) of B images of one client to logits (..., B, classes).

    ``layers`` post-norm transformer layers of hidden width D, copies of one at the start, then ReLU
    and the linear ``head``; ``self.layers`` alone gives the features. Images have no order, and
    axes before theirs keep clients apart. All six projections of a layer are split in
    ``partitions`` and shuffled, see :class:`PartitionedLinear`; unsplit, a layer computes what
    ``nn.TransformerEncoderLayer`` does. Weights start as in the authors' code for split layers.

    Without ``attention`` it is the control in which an image sees itself alone: three feed-forward
    blocks a layer, so six projections too, and one more norm (2 D parameters). The authors' control
    has two. Raises ConfError where ``heads`` or ``partitions`` do not divide the features.
    """

    def __init__(
        self,
        *,
        features: int,
        num_classes: int,
        layers: int = 1,
        heads: int = 4,
        partitions: int = 1,
        dropout: float = 0.1,
        shuffle: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        _check_divides(features, "heads", heads)
        linear = partial(PartitionedLinear, features, partitions=partitions, shuffle=shuffle)
        blocks: list[nn.Module]
        if attention:
            blocks = [_SelfAttention(linear, heads, dropout), _feed_forward(linear, dropout)]
        else:
            blocks = [_feed_forward(linear, dropout) for _ in range(3)]
        layer = nn.Sequential(*(_Residual(block, features, dropout) for block in blocks))
        self.layers = nn.Sequential(*(deepcopy(layer) for _ in range(layers)))
        self.head = nn.Linear(features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of every image, in the light of all those beside it."""
        return self.head(functional.relu(self.layers(features)))


class PartitionedLinear(nn.Module):
    """A linear map of the last axis, D to D, as P independent ones of D/P features each.

    It takes 1/P of the weights and operations. The shuffle deals the outputs out, one of every
    partition in turn, so that what comes next sees all partitions; then a bias is added. Starts as
    P ``nn.Linear`` do. Raises ConfError where ``partitions`` does not divide the features.
    """

    def __init__(self, features: int, *, partitions: int = 1, shuffle: bool = True) -> None:
        super().__init__()
        _check_divides(features, "partitions", partitions)
        self.shuffle, self.width = shuffle, features // partitions
        self.weight = nn.Parameter(torch.empty(partitions, self.width, self.width))
        self.bias = nn.Parameter(torch.empty(features))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(self.width**-0.5), self.width**-0.5)

    def start_as_xavier(self, stacked: int = 1) -> None:
        """Draw weights by Xavier's rule for ``stacked`` such maps of one input; zero the bias."""
        bound = sqrt(6 / (self.width * (1 + stacked)))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        parts = features.unflatten(-1, (-1, self.width))
        parts = torch.einsum("...pi,poi->...po", parts, self.weight)
        if self.shuffle:
            parts = parts.transpose(-2, -1)
        return parts.flatten(-2) + self.bias


class _SelfAttention(nn.Module):
    """Attention over the image axis, by heads of D/H neighbouring features each."""

    def __init__(self, linear: Callable[[], PartitionedLinear], heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.out = (linear() for _ in range(4))
        for projection in (self.q, self.k, self.v):
            projection.start_as_xavier(stacked=3)
        self.out.start_as_xavier()

    def forward(self, features: Tensor) -> Tensor:
        q, k, v = (
            projection(features).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for projection in (self.q, self.k, self.v)
        )
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out(attended.transpose(-3, -2).flatten(-2))


class _Residual(nn.Module):
    """Add what a block gives to what it is given, and normalise the sum."""

    def __init__(self, block: nn.Module, features: int, dropout: float) -> None:
        super().__init__()
        self.block, self.dropout = block, nn.Dropout(dropout)
        self.norm = nn.LayerNorm(features)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(features + self.dropout(self.block(features)))


def _feed_forward(linear: Callable[[], PartitionedLinear], dropout: float) -> nn.Sequential:
    return nn.Sequential(linear(), nn.ReLU(), nn.Dropout(dropout), linear())


def _check_divides(features: int, key: str, value: int) -> None:
    if value < 1 or features % value:
        raise ConfError(f"{key}={value}: must divide the {features} features")
