"""Patches: small bottlenecks beside a recommender's hidden layers that make it one device's own.

MetaPatch, Yao et al., "Device-Cloud Collaborative Learning for Recommendation", arXiv 2104.06624:
all weights of all patches come from one short vector, so that few samples are enough to learn it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dccl_flower.models.scoring import Change


class MetaPatch(nn.Module):
    """Patch layer j to f_j + h_j(f_j), where h_j's flat weights are theta_0_j + Theta_j v.

    A device learns v and the cloud the bases Theta_j, (weights, rank) each, whose columns start
    orthonormal; theta_0_j stays as it is drawn. Torch's global generator draws both. With
    ``per_patch`` every patch has a part of v to itself. ``widths`` are those of all hidden layers,
    ``points`` the numbers of those to patch. Raises ValueError for a point that is
    no hidden layer or is named twice, for no points, and for a size out of bounds: a basis has at
    most as many columns as rows.
    """

    def __init__(
        self,
        widths: Sequence[int],
        points: Sequence[int],
        bottleneck: int,
        rank: int,
        per_patch: bool = False,
    ) -> None:
        super().__init__()
        drawn = _drawn(widths, points, bottleneck)
        most = min(map(len, drawn))
        if not 1 <= rank <= most:
            raise ValueError(f"rank={rank}: must be 1..{most}, the weights of the smallest patch")
        self.points, self.bottleneck, self.rank = tuple(points), bottleneck, rank
        self.vector_size = rank * len(points) if per_patch else rank
        self.bases = nn.ParameterList(
            nn.init.orthogonal_(torch.empty(len(weights), rank)) for weights in drawn
        )
        for point, weights in zip(points, drawn, strict=True):
            self.register_buffer(_origin(point), weights)

    def start(self) -> Tensor:
        """Return the vector with which the patched model computes what the unpatched does.

        The gradient by it is not zero all the same, since the down-projections are not.
        """
        return self.bases[0].new_zeros(self.vector_size)

    def change(self, vector: Tensor) -> Change:
        """Return the patches of a vector (vector_size,), or of one a sample (B, vector_size).

        They are for hidden outputs (B, width) or (B, L, width). Raises ValueError for a vector of
        another size.
        """
        if vector.shape[-1] != self.vector_size:
            raise ValueError(f"a vector of size {vector.shape[-1]}, not {self.vector_size}")
        parts = vector.split(self.rank, -1)
        parts = parts if len(parts) > 1 else parts * len(self.points)
        made = zip(self.points, self.bases, parts, strict=True)
        return _patching(
            {j: self.get_buffer(_origin(j)) + part @ basis.T for j, basis, part in made},
            self.bottleneck,
        )


class WholePatches(nn.Module):
    """The same patches without a basis: their weights themselves are the parameters.

    They start as those of :class:`MetaPatch` do, and the same arguments are refused.
    """

    def __init__(self, widths: Sequence[int], points: Sequence[int], bottleneck: int) -> None:
        super().__init__()
        self.points, self.bottleneck = tuple(points), bottleneck
        self.weights = nn.ParameterList(_drawn(widths, points, bottleneck))

    def change(self) -> Change:
        """Return the patches; they follow the parameters."""
        weights = dict(zip(self.points, self.weights, strict=True))
        return _patching(weights, self.bottleneck)


class Encoder(nn.Module):
    """Refine a device's vector by what the model makes of a sample and by the user's profile.

    So a user whose own vector is still at the start has patches, too. It begins as the identity in
    the vectors. ``width`` is that of :meth:`Recommender.represent`.
    """

    def __init__(
        self,
        vector_size: int,
        width: int,
        profile_sizes: Sequence[int],
        embedding: int = 8,
        hidden: int = 32,
    ) -> None:
        super().__init__()
        self.profiles = nn.ModuleList(nn.Embedding(size, embedding) for size in profile_sizes)
        self.first = nn.Linear(vector_size + width + embedding * len(profile_sizes), hidden)
        self.last = nn.Linear(hidden, vector_size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, vectors: Tensor, represented: Tensor, profiles: Tensor) -> Tensor:
        """Return vectors (B, size) for vectors alike, (B, width) and profile codes (B, P)."""
        columns = zip(self.profiles, profiles.unbind(1), strict=True)
        embedded = [table(codes) for table, codes in columns]
        inputs = torch.cat([vectors, represented, *embedded], 1)
        return vectors + self.last(torch.tanh(self.first(inputs)))


def _drawn(widths: Sequence[int], points: Sequence[int], bottleneck: int) -> list[Tensor]:
    """Return flat weights for each point: zero, but for a down-projection as of ``nn.Linear``."""
    if not points or len(set(points)) < len(points) or not set(points) <= set(range(len(widths))):
        raise ValueError(f"points={list(points)}: must be different ones of 0..{len(widths) - 1}")
    if bottleneck < 1:
        raise ValueError(f"bottleneck={bottleneck}: must be 1 or more")
    drawn = []
    for width in (widths[point] for point in points):
        weights = torch.zeros(sum(_sizes(width, bottleneck)))
        nn.init.uniform_(weights[: width * bottleneck], -(width**-0.5), width**-0.5)
        drawn.append(weights)
    return drawn


def _sizes(width: int, bottleneck: int) -> list[int]:
    """Return the lengths of what flat weights hold: down, its bias, up, its bias."""
    return [width * bottleneck, bottleneck, bottleneck * width, width]


def _origin(point: int) -> str:
    return f"origin_{point}"


def _patching(weights: Mapping[int, Tensor], bottleneck: int) -> Change:
    def change(layer: int, features: Tensor) -> Tensor:
        if layer not in weights:
            return features
        own = weights[layer]
        if own.dim() == 2 and features.dim() == 2:  # a matrix a sample: each is a batch of one
            return _patched(features.unsqueeze(1), own, bottleneck).squeeze(1)
        return _patched(features, own, bottleneck)

    return change


def _patched(features: Tensor, weights: Tensor, bottleneck: int) -> Tensor:
    """Add what the bottleneck makes of features (..., N, width); weights may have a batch axis."""
    width = features.shape[-1]
    down, down_bias, up, up_bias = weights.split(_sizes(width, bottleneck), -1)
    # The tanh has a slope everywhere: of few hidden units none may be dead.
    hidden = torch.tanh(
        features @ down.unflatten(-1, (width, bottleneck)) + down_bias.unsqueeze(-2)
    )
    return features + hidden @ up.unflatten(-1, (bottleneck, width)) + up_bias.unsqueeze(-2)
