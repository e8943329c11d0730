"""Choose samples whose mean lies close to that of their class."""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor, nn

from dccl_flower.data.batches import Batches
from dccl_flower.models.head import find_head


def herded_rows(features: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return ``count`` positions, as evenly over the classes as they reach.

    Within a class each next sample is the one that brings the mean of those chosen closest to
    the mean of all (herding as in iCaRL, Rebuffi et al., arXiv 1611.07725). ``features`` (N, F)
    are normalised to length one first; ``labels`` (N,).
    """
    features = torch.nn.functional.normalize(features.double(), dim=1)
    orders = []
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        orders.append(rows[_herd(features[rows], min(count, len(rows)))].tolist())
    in_turn = [row for rank in zip_longest(*orders) for row in rank if row is not None]
    return torch.tensor(in_turn[:count], dtype=torch.long)


@torch.inference_mode()
def head_inputs(
    model: nn.Module, batches: Batches, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return what reaches the model's head, (N, F), and the labels (N,), in eval mode."""
    features: list[Tensor] = []
    labels = []
    was_training = model.training
    model.eval()
    _, head = find_head(model)
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].cpu()))
    try:
        for images, targets in batches:
            model(images.to(device))
            labels.append(targets)
    finally:
        hook.remove()
        model.train(was_training)
    return torch.cat(features), torch.cat(labels)


def _herd(features: Tensor, count: int) -> Tensor:
    """Return the positions of the first ``count`` herded samples of one class, in order."""
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool)
    order = []
    for taken in range(count):
        distances = ((total + features) / (taken + 1) - mean).norm(dim=1)
        distances[~free] = torch.inf
        best = int(distances.argmin())
        free[best] = False
        total = total + features[best]
        order.append(best)
    return torch.tensor(order, dtype=torch.long)
