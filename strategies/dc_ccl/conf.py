"""DC-CCL's part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dccl_flower.config import ConfError, bound, section
from dccl_flower.image_config import DistilConf, PretrainConf, SubmodelsConf, TwoSidedRoundsConf
from dccl_flower.image_experiment import ImageExperiment


@dataclass
class DcCclConf(SubmodelsConf):
    """One experiment with DC-CCL."""

    pretrain: PretrainConf = section(PretrainConf)
    distil: DistilConf = section(DistilConf)
    rounds: TwoSidedRoundsConf = section(TwoSidedRoundsConf)
    loss: Literal["ce", "prior_corrected"] = "ce"
    fusion: Literal["average", "class_wise_head"] = "average"
    head_tuning: Literal["none", "federated"] = "none"
    exemplars: int = bound(0, at_least=0)
    exemplar_choice: Literal["random", "herded"] = "random"

    def check(self) -> None:
        """Raise ConfError for values that do not go with one another."""
        super().check()
        self._check_models()
        if self.rounds.scaffold and self.rounds.cloud_weight in (0, 1):
            given = f"rounds.cloud_weight={self.rounds.cloud_weight}"
            raise ConfError(f"rounds.scaffold=true: needs both sides; {given} leaves one out")
        if self.rounds.head_tuning_noise and not self.rounds.head_tuning_clip:
            given = f"rounds.head_tuning_noise={self.rounds.head_tuning_noise}"
            raise ConfError(f"{given}: needs rounds.head_tuning_clip, of which it is a multiple")
        if self.privacy.dp != "none" and self.rounds.server_momentum:
            given = f"rounds.server_momentum={self.rounds.server_momentum}"
            told = f"not with privacy.dp={self.privacy.dp}: it remembers changes without noise"
            raise ConfError(f"{given}: {told}")
        shared = self.runtime.devices_per_node
        if shared != 1 and self.rounds.scaffold and self.fusion == "class_wise_head":
            both = "rounds.scaffold=true and fusion=class_wise_head"
            raise ConfError(f"runtime.devices_per_node={shared}: not with both {both}")

    def _check_models(self) -> None:
        co, mimic = self.model.co.name, self.model.mimic.name
        if self.model.shared_stem and (co or mimic):
            raise ConfError("model.shared_stem=true: only slices of model.base can share its stem")
        if self.model.co_start != "mimic":
            return
        if self.normalisation.startswith("group"):
            given = f"normalisation={self.normalisation}"
            raise ConfError(f"model.co_start=mimic: not with {given}, which the mimic has not")
        if mimic not in (None, co):
            given = f"model.mimic.name={mimic}"
            raise ConfError(f"model.co_start=mimic: not with {given}, another architecture")


def conf_of(experiment: ImageExperiment) -> DcCclConf:
    """Return the configuration with the sections of DC-CCL."""
    assert isinstance(experiment.conf, DcCclConf)
    return experiment.conf
