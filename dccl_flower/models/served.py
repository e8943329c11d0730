"""The served model: the sum of two submodels' logits."""

from __future__ import annotations

from torch import Tensor, nn


class ServedModel(nn.Module):
    """Add the raw logits of the cloud submodel (or its mimic) and of the co-submodel."""

    def __init__(self, cloud: nn.Module, co: nn.Module) -> None:
        super().__init__()
        self.cloud = cloud
        self.co = co

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        return self.cloud(x) + self.co(x)
