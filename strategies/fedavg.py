"""FedAvg, McMahan et al., arXiv 1602.05629: the small model alone, no cloud copy, no control.

server    model ─────────────> each device: train on private samples
            ^                        │
            └── average by samples <─┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dccl_flower.config import Conf, section
from dccl_flower.fleet.profiles import refuse_widths
from dccl_flower.fleet.tiers import Workload
from dccl_flower.image_config import CutModelConf, ImageConf, MimicModelConf, SubmodelsConf
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.learning.controlled import round_recipe
from dccl_flower.learning.fusion import State, average
from dccl_flower.method import Ask, Kinds, MethodKind, Round
from dccl_flower.models.build import Parts, Shape
from dccl_flower.models.frozen import Frozen, frozen_names
from dccl_flower.strategies.exchange import copies_of
from dccl_flower.strategies.plain import PlainDevice, ServedAlone, Train, served_alone


@dataclass
class FedAvgConf(ImageConf):
    """The model is DC-CCL's co-submodel: a slice of the base model, or one of its own.

    A shared stem stays whole, and trains as all else does.
    """

    model: CutModelConf = section(CutModelConf)


class FedAvg(ServedAlone):
    """The server's half."""

    def workload(self) -> Workload:
        """Return what a turn takes a device. Raises ConfError for tiers of another width."""
        refuse_widths(self.experiment.conf)
        return super().workload()

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Have every device train a copy, and average the copies by sample count."""
        ask = Ask(state, Train(round_recipe(self.rounds, number)))
        answers = yield dict.fromkeys(devices, ask)
        return average(None, copies_of(answers.values()), 0.0)


def _model(experiment: ImageExperiment, fetch: bool = True) -> nn.Module:
    images = experiment.images
    return _built(experiment.conf, images.shape, images.num_classes, fetch)


def _built(conf: Conf, shape: Shape, num_classes: int, fetch: bool = True) -> nn.Module:
    assert isinstance(conf, FedAvgConf)
    cut = SubmodelsConf(seed=conf.seed, model=MimicModelConf(**vars(conf.model)))
    co = Parts(cut, shape, num_classes, fetch).co
    for name in frozen_names(co):
        part = co.get_submodule(name)
        assert isinstance(part, Frozen)
        co.set_submodule(name, part.module.requires_grad_(True))
    return co


def _trained(
    conf: Conf, shape: Shape, num_classes: int, states: Mapping[str, State]
) -> dict[str, nn.Module]:
    return served_alone(_built(conf, shape, num_classes, fetch=False), states)


FEDAVG = MethodKind(
    FedAvgConf,
    ImageExperiment.open,
    lambda experiment, _: FedAvg(_model(experiment), experiment),
    lambda experiment: PlainDevice(_model(experiment, fetch=False), experiment.torch_device),
    lambda experiment: FedAvg(_model(experiment), experiment).workload(),
    kinds=lambda _: Kinds({"model"}, {"model"}),
    trained=_trained,
)
