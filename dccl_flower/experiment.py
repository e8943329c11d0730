"""One configuration with its data, as far as an engine looks at it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import torch

from dccl_flower.config import Conf
from dccl_flower.learning.compute import Compute


@dataclass(frozen=True)
class Experiment(ABC):
    """One configuration with its data; of what kind these are, is for a subclass to say."""

    conf: Conf

    @property
    def torch_device(self) -> torch.device:
        """The device that trains: the GPU where the configuration asks for it."""
        return torch.device("cuda" if self.conf.runtime.gpu else "cpu")

    @property
    def compute(self) -> Compute:
        """How the cloud's heavy models compute."""
        runtime = self.conf.runtime
        return Compute(self.torch_device, runtime.mixed_precision, runtime.channels_last)

    @property
    def cohort_size(self) -> int:
        """How many devices take part in a round."""
        return self.conf.devices.per_round or self.conf.devices.count

    def facts(self) -> dict[str, Any]:
        """Return, as plain values, what using a trained model needs to know of the data."""
        return {}

    @abstractmethod
    def device_loader(self, device: int) -> Any:
        """Return a device's own samples, in the form that its method's device half takes."""

    @abstractmethod
    def on_unseen(self) -> Self:
        """Return the experiment with scores that are not those of the test set.

        Raises ConfError where there is nothing else to score by.
        """
