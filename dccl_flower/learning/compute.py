"""Where and how precisely the heavy models compute."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Compute:
    """A torch device, bfloat16 autocast, and the memory layout of images and convolutions."""

    device: torch.device | str = "cpu"
    mixed_precision: bool = False
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of 4-dimensional tensors."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def module(self, module: nn.Module) -> None:
        """Move a model's weights, in place."""
        module.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def images(self, images: Tensor) -> Tensor:
        """Return the images (N, C, H, W) where the model expects them."""
        layout = self.memory_format if images.dim() == 4 else torch.contiguous_format
        return images.to(self.device, memory_format=layout)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the scope of a forward pass."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.mixed_precision)


CPU = Compute()
