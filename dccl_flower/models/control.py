"""What stands in for the cloud submodel while the co-submodel trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dccl_flower.models.frozen import frozen_names
from dccl_flower.models.head import find_head


@dataclass
class Submodels:
    """The cloud submodel, the co-submodel, and the mimic that stands in for the cloud."""

    cloud: nn.Module
    co: nn.Module
    mimic: nn.Module


class NoControl(nn.Module):
    """Logits of zero, so that the co-submodel learns on its own.

    It holds what the co-submodel shares with the cloud under the same names, since a control also
    brings that to a device.
    """

    def __init__(self, co: nn.Module) -> None:
        super().__init__()
        self.num_classes = find_head(co)[1].out_features
        for name in frozen_names(co):
            parent: nn.Module = self
            *above, last = name.split(".")
            for part in above:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, copy.deepcopy(co.get_submodule(name)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, ...) to zeros (N, classes)."""
        return torch.zeros(len(x), self.num_classes, device=x.device)


# Of Submodels, or of what builds each when it is asked for, as :class:`models.build.Parts` does.
CONTROLS: dict[str, Callable[[Any], nn.Module]] = {
    "mimic": lambda submodels: submodels.mimic,
    "cloud_submodel": lambda submodels: submodels.cloud,
    "none": lambda submodels: NoControl(submodels.co),
}


def choose_control(name: str, mimic: nn.Module, cloud: nn.Module, co: nn.Module) -> nn.Module:
    """Return the control of that name. Raises ValueError for one that does not exist."""
    if name not in CONTROLS:
        raise ValueError(f"control={name!r}: expected one of {', '.join(CONTROLS)}")
    return CONTROLS[name](Submodels(cloud, co, mimic))
