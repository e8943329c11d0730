"""How DC-CCL's two halves are made from a configuration and its data."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import torch

from dccl_flower.config import ConfError
from dccl_flower.experiment import Experiment
from dccl_flower.fleet.profiles import fleet_of
from dccl_flower.fleet.tiers import Workload
from dccl_flower.learning.fusion import Fusion
from dccl_flower.learning.widths import Widths
from dccl_flower.method import MethodKind, OnProgress
from dccl_flower.models.build import build_device_modules, build_submodels
from dccl_flower.models.normalisation import NORM_RULES
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.conf import DcCclConf, conf_of
from dccl_flower.strategies.dc_ccl.device import DcCclDevice
from dccl_flower.strategies.dc_ccl.method import DcCclServer, Settings, workload
from dccl_flower.strategies.dc_ccl.prepared import prepare

Server = TypeVar("Server", bound=DcCclServer)


def build_cloud(experiment: Experiment, on_progress: OnProgress) -> Cloud:
    """Build the cloud with its models and data."""
    conf = conf_of(experiment)
    models = build_submodels(conf, experiment.images.shape, experiment.images.num_classes)
    return Cloud(
        models.cloud,
        models.mimic,
        models.co,
        experiment.cloud_loader(conf.pretrain.batch_size),
        co_loader=experiment.cloud_loader(conf.rounds.cloud_batch_size),
        validation_loader=experiment.validation_loader(),
        pretrain=conf.pretrain,
        distil=conf.distil,
        seed=conf.seed,
        control=conf.control,
        co_start=conf.model.co_start,
        compute=experiment.compute,
        on_progress=on_progress,
    )


def build_server(experiment: Experiment, on_progress: OnProgress, kind: type[Server]) -> Server:
    """Build the server's half, or one of a kind that differs in its rounds alone."""
    conf = conf_of(experiment)
    norm = NORM_RULES[conf.normalisation]
    settings = Settings(
        loss=conf.loss,
        fusion=Fusion(conf.fusion == "class_wise_head", norm.pooled),
        statistics=norm.late_statistics,
        head_tuning=conf.head_tuning == "federated",
        exemplars=conf.exemplars,
        exemplar_choice=conf.exemplar_choice,
    )
    fleet, cloud = fleet_of(conf), build_cloud(experiment, on_progress)
    server = kind(cloud, settings, conf.rounds, fleet, partial(prepare, experiment, cloud))
    server.score_on(experiment.scoring_loader(), *experiment.classes)
    return server


def _server(experiment: Experiment, on_progress: OnProgress) -> DcCclServer:
    return build_server(experiment, on_progress, DcCclServer)


def _device(experiment: Experiment) -> DcCclDevice:
    conf, images = conf_of(experiment), experiment.images
    co, control = build_device_modules(conf, images.shape, images.num_classes)
    return DcCclDevice(co, control, experiment.torch_device, conf.runtime.cache_logits)


def _check(experiment: Experiment) -> Workload:
    conf, images = conf_of(experiment), experiment.images
    if conf.exemplars > len(experiment.plan.cloud):
        held = f"the cloud has {len(experiment.plan.cloud)} samples"
        raise ConfError(f"exemplars={conf.exemplars}: {held}")
    co, control = build_device_modules(conf, images.shape, images.num_classes)
    fleet = fleet_of(conf)
    shares = {tier.co_share for tier in fleet.tiers} if fleet else {1.0}
    given = {
        "rounds.scaffold=true": conf.rounds.scaffold,
        "head_tuning=federated": conf.head_tuning != "none",
    }
    for key in (key for key, is_given in given.items() if is_given and shares != {1.0}):
        raise ConfError(f"{key}: not with tiers of co_share below 1 in devices.profiles")
    example = torch.zeros(2, *images.shape)
    widths = Widths(co, example, shares)
    return workload(widths, control, example, conf.rounds, conf.exemplars > 0)


DC_CCL = MethodKind(DcCclConf, _server, _device, _check)
