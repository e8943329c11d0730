"""Classifiers that tell what their head is given, too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dccl_flower.config import ConfError
from dccl_flower.models.head import find_head


class Featured(nn.Module):
    """Map images (N, C, H, W) to features (N, D) and logits (N, classes) of frozen classifiers.

    Features are what their heads are given, side by side; logits are summed. Raises ConfError where
    a head is not given one vector an image, found out on ``example`` (N, C, H, W).
    """

    def __init__(self, models: Sequence[nn.Module], example: Tensor) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.requires_grad_(False).eval()
        self._heads = [find_head(model, example=example)[0] for model in models]
        self._seen: list[Tensor] = []
        for model, head in zip(self.models, self._heads, strict=True):
            model.get_submodule(head).register_forward_pre_hook(partial(_note, self._seen))
        with torch.no_grad():
            for model, head in zip(self.models, self._heads, strict=True):
                self._seen.clear()
                model(example)
                shapes = [tuple(seen.shape) for seen in self._seen]
                if len(shapes) != 1 or len(shapes[0]) != 2:
                    said = f"its head {head} is given {shapes}"
                    wanted = "expected one vector an image before it"
                    raise ConfError(f"{type(model).__name__}: {said}; {wanted}")

    @property
    def width(self) -> int:
        """How many features an image has."""
        return self.linear_head().in_features

    def linear_head(self) -> nn.Linear:
        """Return one linear layer that gives the logits from the features; a copy."""
        heads = [
            find_head(model, name=name)[1]
            for model, name in zip(self.models, self._heads, strict=True)
        ]
        joined = nn.Linear(sum(head.in_features for head in heads), heads[0].out_features)
        with torch.no_grad():
            joined.weight.copy_(torch.cat([head.weight for head in heads], 1))
            biases = [head.bias for head in heads if head.bias is not None]
            joined.bias.copy_(sum(biases, torch.zeros_like(joined.bias)))
        return joined

    def train(self, mode: bool = True) -> Featured:
        """Ignore the mode: what is frozen always evaluates."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._seen.clear()
        logits = sum(model(images) for model in self.models)
        assert isinstance(logits, Tensor)
        return torch.cat(self._seen, 1), logits


def _note(seen: list[Tensor], head: nn.Module, inputs: tuple[Any, ...]) -> None:
    seen.append(inputs[0])
