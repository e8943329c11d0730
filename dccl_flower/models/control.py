"""What stands in for the cloud submodel while the co-submodel trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dccl_flower.models.frozen import Frozen, frozen_names
from dccl_flower.models.head import find_head


@dataclass
class Submodels:
    """The cloud submodel, the co-submodel, and the mimic that stands in for the cloud."""

    cloud: nn.Module
    co: nn.Module
    mimic: nn.Module


class HasSubmodels(Protocol):
    """What has the three submodels, or builds those that it is asked for."""

    @property
    def cloud(self) -> nn.Module:
        """The cloud submodel."""

    @property
    def co(self) -> nn.Module:
        """The co-submodel."""

    @property
    def mimic(self) -> nn.Module:
        """The mimic."""


class NoControl(nn.Module):
    """Logits of zero, so that the co-submodel learns on its own.

    It holds what the co-submodel shares with the cloud under the same names, since a control also
    brings that to a device.
    """

    def __init__(self, co: nn.Module) -> None:
        super().__init__()
        self.num_classes = find_head(co)[1].out_features
        for name in frozen_names(co):
            part = co.get_submodule(name)
            assert isinstance(part, Frozen)
            self._place(name, Frozen(copy.deepcopy(part.module)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, ...) to zeros (N, classes)."""
        return torch.zeros(len(x), self.num_classes, device=x.device)

    def _place(self, name: str, part: nn.Module) -> None:
        *parents, last = name.split(".")
        module: nn.Module = self
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.add_module(last, part)


CONTROLS: dict[str, Callable[[HasSubmodels], nn.Module]] = {
    "mimic": lambda submodels: submodels.mimic,
    "cloud_submodel": lambda submodels: submodels.cloud,
    "none": lambda submodels: NoControl(submodels.co),
}


def choose_control(name: str, mimic: nn.Module, cloud: nn.Module, co: nn.Module) -> nn.Module:
    """Return the control of that name. Raises ValueError for one that does not exist."""
    if name not in CONTROLS:
        raise ValueError(f"control={name!r}: expected one of {', '.join(CONTROLS)}")
    return CONTROLS[name](Submodels(cloud, co, mimic))
