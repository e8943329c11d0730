"""What the methods have in common that learn from logs of users and items."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dccl_flower.config import BareRoundsConf, Conf, ConfError, DevicesConf
from dccl_flower.interaction_config import LogDataConf
from dccl_flower.typed_yaml import bound, section


@dataclass
class RecommenderConf:
    """The model: an embedding of so many numbers a code, then hidden layers of these widths."""

    name: Literal["din", "sasrec", "wide_deep"] = "din"
    embedding: int = bound(16, at_least=1)
    hidden: list[int] = field(default_factory=lambda: [64, 32])
    user_ids: bool = False


@dataclass
class FitConf:
    """Cross-entropy training by Adam."""

    epochs: int = bound(5, at_least=1)
    batch_size: int = bound(256, at_least=1)
    lr: float = bound(1e-3, above=0)
    weight_decay: float = bound(0.0, at_least=0)


@dataclass
class DeviceFitConf(FitConf):
    """What a device trains on its few samples, by Adam too."""

    epochs: int = bound(10, at_least=1)
    batch_size: int = bound(16, at_least=1)
    lr: float = bound(1e-2, above=0)


@dataclass
class UsersConf(DevicesConf):
    """A device is a user: as many are drawn of those who have recent samples and samples to score.

    All others are known to the cloud alone.
    """

    count: int = bound(1000, at_least=1)


@dataclass
class InteractionConf(Conf):
    """An experiment with a log of users and items.

    ``scoring``: models are scored by the log's last part, or while settings are chosen by the later
    half of what devices hold, which they then do not train on. ``top_k`` is that of HitRate and
    NDCG.
    """

    data: LogDataConf = section(LogDataConf)
    devices: UsersConf = section(UsersConf)
    model: RecommenderConf = section(RecommenderConf)
    pretrain: FitConf = section(FitConf)
    rounds: BareRoundsConf = section(BareRoundsConf)
    device: DeviceFitConf = section(DeviceFitConf)
    scoring: Literal["test", "validation"] = "test"
    top_k: int = bound(10, at_least=1)

    def check(self) -> None:
        """Raise ConfError for values that do not go with one another."""
        super().check()
        if not self.model.hidden or min(self.model.hidden) < 1:
            raise ConfError(f"model.hidden={self.model.hidden}: must be a list of widths above 0")
        if self.runtime.gpu:
            raise ConfError("runtime.gpu=true: not with logs of users, whose models are small")
        if self.runtime.devices_per_node != 1:
            given = f"runtime.devices_per_node={self.runtime.devices_per_node}"
            raise ConfError(f"{given}: must be 1 where each device has a model of its own")
