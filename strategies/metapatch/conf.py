"""MetaPatch's part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dccl_flower.config import ConfError, MethodConf
from dccl_flower.interaction_experiment import InteractionExperiment
from dccl_flower.learning.metapatch import Distillation
from dccl_flower.recommendation_config import FitConf, InteractionConf
from dccl_flower.typed_yaml import bound, section

LARGEST_VECTOR = 64


@dataclass
class MetaPatchMethodConf(MethodConf):
    """Which model devices score, and where their recent samples lie.

    ``serves``: the device's own model, before the cloud learns of it, or the cloud's after, as it
    is or under its proxy of the device's patches. With ``raw_samples=device`` both stages run on
    devices, joined by FedAvg: no part of the paper.
    """

    serves: Literal["device", "cloud", "proxy"] = "device"
    raw_samples: Literal["cloud", "device"] = "cloud"


@dataclass
class BasesFitConf(FitConf):
    """How bases are first trained, and with them a vector for each user."""

    lr: float = bound(1e-2, above=0)


@dataclass
class AdaptationConf:
    """What makes the cloud's model a device's own.

    ``metapatch``: patches from a short vector. ``patches``: patches whose every weight is the
    device's. ``fine_tuning``: all of the model, anew each round. ``points`` number the hidden
    layers to patch, ``rank`` is the vector's size, with ``per_patch`` that of each patch's part.
    ``bases`` are drawn, or pre-trained from there on the past.
    """

    by: Literal["metapatch", "patches", "fine_tuning", "none"] = "metapatch"
    points: list[int] = field(default_factory=lambda: [0, 1])
    bottleneck: int = bound(8, at_least=1)
    rank: int = bound(16, at_least=1, at_most=LARGEST_VECTOR)
    per_patch: bool = False
    bases: Literal["pretrained", "drawn"] = "pretrained"
    pretrain: BasesFitConf = section(BasesFitConf)


@dataclass
class StageConf(FitConf):
    """One stage of what the cloud learns in a round."""

    epochs: int = bound(2, at_least=1)


@dataclass
class CloudConf:
    """What the cloud learns of recent samples, and how much of the devices' models.

    ``data``: the model learns of labels alone. ``beta`` and ``direction`` are of the divergence
    from devices' models; unless ``patches_see_labels`` it is all that stage 2 learns of.
    """

    learns: Literal["both", "stage_1", "stage_2", "data", "nothing"] = "both"
    beta: float = bound(0.5, at_least=0)
    direction: Literal["teacher_student", "student_teacher"] = "teacher_student"
    patches_see_labels: bool = True
    stage_1: StageConf = section(StageConf)
    stage_2: StageConf = section(StageConf)

    @property
    def model_learns(self) -> bool:
        """Tell whether the model changes: in stage 1, or of data alone."""
        return self.learns in ("both", "stage_1", "data")

    @property
    def patches_learn(self) -> bool:
        """Tell whether bases and encoder change."""
        return self.learns in ("both", "stage_2")

    @property
    def has_teachers(self) -> bool:
        """Tell whether devices' models teach anything."""
        return self.learns in ("both", "stage_1", "stage_2")

    def distillation(self) -> Distillation:
        """Return how teachers are followed."""
        return Distillation(self.beta, self.direction, self.patches_see_labels)


@dataclass
class MetaPatchConf(InteractionConf):
    """One experiment with MetaPatch."""

    method: MetaPatchMethodConf = section(MetaPatchMethodConf)
    adaptation: AdaptationConf = section(AdaptationConf)
    cloud: CloudConf = section(CloudConf)

    def check(self) -> None:
        """Raise ConfError for values that do not go with one another."""
        super().check()
        by, own = self.adaptation.by, self.adaptation
        if self.cloud.has_teachers and by != "metapatch":
            given = f"cloud.learns={self.cloud.learns}"
            raise ConfError(f"{given}: must be data or nothing with adaptation.by={by}")
        if self.method.serves == "proxy" and by != "metapatch":
            told = "must be device or cloud"
            raise ConfError(f"method.serves=proxy: {told} with adaptation.by={by}")
        size = own.rank * len(own.points) if own.per_patch else own.rank
        if size > LARGEST_VECTOR:
            given = f"adaptation.rank={own.rank}: {len(own.points)} patches take {size} numbers"
            raise ConfError(f"{given}; must be {LARGEST_VECTOR} at most")
        if self.method.raw_samples == "device" and self.wire.codec == "int8":
            told = "not with method.raw_samples=device, whose updates are of more than one model"
            raise ConfError(f"wire.codec=int8: {told}")


def conf_of(experiment: InteractionExperiment) -> MetaPatchConf:
    """Return the configuration with the sections of MetaPatch."""
    assert isinstance(experiment.conf, MetaPatchConf)
    return experiment.conf
