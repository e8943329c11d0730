"""ICIIA's part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dccl_flower.config import ConfError, MethodConf, bound, path, section, share
from dccl_flower.image_config import ImageConf, PretrainConf, RoundsConf
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.learning.client_attention import Recipe, Serving


@dataclass
class IciiaMethodConf(MethodConf):
    """Where the module is trained, on top of what, and where it serves.

    ``backbone`` is the folder of a finished run of DC-CCL, whose two submodels are one backbone:
    mimic and co-submodel where the ``device`` serves, cloud submodel and co-submodel on the
    ``cloud``. Without one, ``model.base`` is trained on the cloud's samples.
    """

    training: Literal["cloud", "federated"] = "cloud"
    backbone: str | None = path()
    serves: Literal["device", "cloud"] = "device"


@dataclass
class AdaptationConf:
    """What makes a backbone's answers a client's own, how it is trained, how a device serves it.

    ``partitions``: 1 is ICIIA-B, 256 ICIIA-T. ``clients`` are simulated among the cloud's images.
    ``cached``: images are served one by one, each beside so many before it; else in batches. With
    less than ``fewest`` images in view the backbone answers.
    """

    by: Literal["attention", "feed_forward", "fine_tuning", "prompt", "oracle", "none"] = (
        "attention"
    )
    layers: int = bound(1, at_least=1)
    heads: int = bound(4, at_least=1)
    partitions: int = bound(1, at_least=1)
    shuffle: bool = True
    dropout: float = bound(0.1, at_least=0, below=1)
    clients: int = bound(100, at_least=1)
    batch_size: int = bound(16, at_least=1)
    epochs: int = bound(100, at_least=1)
    patience: int = bound(10, at_least=1)
    lr: float = bound(0.01, above=0)
    momentum: float = share(0.0)
    max_grad_norm: float = bound(5.0, above=0)
    cached: int | None = bound(None, at_least=0)
    fewest: int = bound(4, at_least=1)

    def recipe(self) -> Recipe:
        """Return how the module is trained."""
        return Recipe(
            self.batch_size, self.epochs, self.patience, self.lr, self.momentum, self.max_grad_norm
        )

    def serving(self) -> Serving:
        """Return how a device serves."""
        return Serving(self.batch_size, -1 if self.cached is None else self.cached, self.fewest)


@dataclass
class IciiaRoundsConf(RoundsConf):
    """Rounds of scoring, one as a rule; or those in which devices train, at these rates."""

    count: int = bound(1, at_least=1)


@dataclass
class IciiaConf(ImageConf):
    """One experiment with ICIIA."""

    method: IciiaMethodConf = section(IciiaMethodConf)
    rounds: IciiaRoundsConf = section(IciiaRoundsConf)
    pretrain: PretrainConf = section(PretrainConf)
    adaptation: AdaptationConf = section(AdaptationConf)

    def check(self) -> None:
        """Raise ConfError for values that do not go with one another."""
        super().check()
        by, method = self.adaptation.by, self.method
        self._check_views()
        if method.training == "federated":
            if by not in ("attention", "feed_forward"):
                raise ConfError(f"adaptation.by={by}: not with method.training=federated")
            if method.serves == "cloud":
                raise ConfError("method.serves=cloud: not with method.training=federated")
        if method.serves == "cloud" and by in ("fine_tuning", "prompt"):
            raise ConfError(f"adaptation.by={by}: needs method.serves=device, which has the labels")
        if method.training == "cloud" and self.devices.per_round is not None:
            given = f"devices.per_round={self.devices.per_round}"
            raise ConfError(f"{given}: not with method.training=cloud, where all devices score")

    def _check_views(self) -> None:
        own, view = self.adaptation, f"adaptation.batch_size={self.adaptation.batch_size}"
        most = own.batch_size
        if own.cached is not None:
            view, most = f"adaptation.cached={own.cached}", own.cached + 1
        if own.fewest > most:
            told = f"must be at most {most} with {view}, or the backbone alone would answer"
            raise ConfError(f"adaptation.fewest={own.fewest}: {told}")


def conf_of(experiment: ImageExperiment) -> IciiaConf:
    """Return the configuration with the sections of ICIIA."""
    assert isinstance(experiment.conf, IciiaConf)
    return experiment.conf
