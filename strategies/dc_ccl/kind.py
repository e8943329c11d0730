"""How DC-CCL's two halves are made from a configuration and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from dccl_flower.codecs import State
from dccl_flower.config import ConfError
from dccl_flower.fleet.profiles import co_shares, fleet_of
from dccl_flower.fleet.tiers import Workload
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.learning.fusion import Fusion
from dccl_flower.learning.head_tuning import HeadPrivacy
from dccl_flower.learning.widths import Widths
from dccl_flower.method import Kinds, MethodKind, OnProgress, true_ones
from dccl_flower.models.build import Parts, Shape, build_device_modules, build_submodels
from dccl_flower.models.normalisation import NORM_RULES
from dccl_flower.models.served import ServedModel
from dccl_flower.strategies.dc_ccl.cloud import Cloud
from dccl_flower.strategies.dc_ccl.conf import DcCclConf, conf_of
from dccl_flower.strategies.dc_ccl.device import HEAD_SAMPLES, DcCclDevice
from dccl_flower.strategies.dc_ccl.method import DcCclServer, Settings, batch_factor
from dccl_flower.strategies.dc_ccl.prepared import ReusedCloud, prepared_key
from dccl_flower.strategies.exchange import CLASS_COUNTS
from dccl_flower.strategies.loads import in_steps


def build_cloud(experiment: ImageExperiment, on_progress: OnProgress) -> Cloud:
    """Build the cloud with its models and data; with ``runtime.reuse`` it knows the cache."""
    conf = conf_of(experiment)
    models = build_submodels(conf, experiment.images.shape, experiment.images.num_classes)
    reused = conf.runtime.reuse
    kind = partial(ReusedCloud, prepared_key(experiment)) if reused else Cloud
    return kind(
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


def build_server(
    experiment: ImageExperiment,
    on_progress: OnProgress,
    kind: Callable[..., DcCclServer] = DcCclServer,
) -> DcCclServer:
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
    test = (experiment.scoring_loader(), *experiment.classes)
    cloud = build_cloud(experiment, on_progress)
    return kind(cloud, settings, conf.rounds, fleet_of(conf), test)


def build_device(experiment: ImageExperiment) -> DcCclDevice:
    """Build a device's half."""
    conf, images = conf_of(experiment), experiment.images
    co, control = build_device_modules(conf, images.shape, images.num_classes)
    rounds, device = conf.rounds, experiment.torch_device
    own = (rounds.head_tuning_floor, rounds.head_tuning_clip, rounds.head_tuning_noise)
    cached = conf.runtime.cache_logits
    return DcCclDevice(co, control, device, cached, head_privacy=HeadPrivacy(*own))


def check(experiment: ImageExperiment) -> Workload:
    """Return what a turn takes a device. Raises ConfError for what does not go together."""
    conf, images = conf_of(experiment), experiment.images
    if conf.exemplars > len(experiment.plan.cloud):
        held = f"the cloud has {len(experiment.plan.cloud)} samples"
        raise ConfError(f"exemplars={conf.exemplars}: {held}")
    co, control = build_device_modules(conf, images.shape, images.num_classes)
    shares = co_shares(fleet_of(conf))
    needs_one_width = {
        "rounds.scaffold=true": conf.rounds.scaffold,
        "head_tuning=federated": conf.head_tuning != "none",
    }
    for key, is_given in needs_one_width.items():
        if is_given and shares != {1.0}:
            raise ConfError(f"{key}: not with tiers of co_share below 1 in devices.profiles")
    widths = Widths(co, experiment.example, shares)
    factor = batch_factor(conf.exemplars)
    return in_steps(conf.rounds, widths, experiment.example, control, factor)


def kinds(experiment: ImageExperiment) -> Kinds:
    """Return what passes, option by option."""
    conf = conf_of(experiment)
    down = true_ones(
        co=True,
        mimic=conf.control == "mimic",
        cloud_submodel=conf.control == "cloud_submodel",
        cloud_stem=conf.model.shared_stem and conf.control != "cloud_submodel",
        exemplars=conf.exemplars > 0,
        correction=conf.rounds.scaffold,
        statistics_cloud=conf.normalisation == "batch_mixed",
    )
    tunes_head = conf.head_tuning != "none"
    told = {CLASS_COUNTS} if conf.fusion == "class_wise_head" else set()
    told |= {HEAD_SAMPLES} if tunes_head else set()
    return Kinds(down, true_ones(co=True, head_gradient=tunes_head), told)


def trained(
    conf: DcCclConf, shape: Shape, num_classes: int, states: Mapping[str, State]
) -> dict[str, nn.Module]:
    """Return what the cloud serves, and what a device can serve by itself."""
    parts = Parts(conf, shape, num_classes, fetch=False)
    modules = {"cloud_submodel": parts.cloud, "co_submodel": parts.co, "mimic": parts.mimic}
    for role, module in modules.items():
        module.load_state_dict(states[role])
    cloud, co, mimic = modules.values()
    return {"served": ServedModel(cloud, co), "device": ServedModel(mimic, co)}


DC_CCL = MethodKind(
    DcCclConf,
    ImageExperiment.open,
    build_server,
    build_device,
    check,
    kinds=kinds,
    trained=trained,
)
