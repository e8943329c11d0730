"""Classifiers that tell what their head is given, too."""

from __future__ import annotations

from collections.abc import Sequence
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
        for model, head in zip(self.models, self._heads, strict=True):
            with torch.no_grad():
                seen, _ = _passed(model, head, example)
            shapes = [tuple(each.shape) for each in seen]
            if len(shapes) != 1 or len(shapes[0]) != 2:
                said = f"its head {head} is given {shapes}"
                raise ConfError(f"{type(model).__name__}: {said}; expected one vector an image")

    @property
    def width(self) -> int:
        """How many features an image has."""
        return self.linear_head().in_features

    def linear_head(self) -> nn.Linear:
        """Return one linear layer that gives the logits from the features; a copy on the CPU."""
        heads = [
            find_head(model, name=name)[1]
            for model, name in zip(self.models, self._heads, strict=True)
        ]
        width, classes = sum(head.in_features for head in heads), heads[0].out_features
        joined = nn.utils.skip_init(nn.Linear, width, classes)  # which draws nothing
        with torch.no_grad():
            joined.weight.copy_(torch.cat([head.weight for head in heads], 1))
            joined.bias.zero_()
            for head in heads:
                if head.bias is not None:
                    joined.bias.add_(head.bias.cpu())
        return joined

    def train(self, mode: bool = True) -> Featured:
        """Ignore the mode: what is frozen always evaluates."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        passed = [
            _passed(model, head, images)
            for model, head in zip(self.models, self._heads, strict=True)
        ]
        features = torch.cat([seen[0] for seen, _ in passed], 1)
        return features, torch.stack([logits for _, logits in passed]).sum(0)


def _passed(model: nn.Module, head: str, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return what a model's head is given, each time, and what the model gives."""
    seen: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    # Only now: a hook that stays would hold what every step of a training sees.
    hook = model.get_submodule(head).register_forward_pre_hook(note)
    try:
        return seen, model(images)
    finally:
        hook.remove()
