"""Arms that pool the data of both sides, or leave the devices' out: bounds, without Flower."""

from __future__ import annotations

from dccl_flower.experiment import Experiment
from dccl_flower.learning.central import OnRound, train_pooled
from dccl_flower.learning.evaluate import Scores, predict, score_sides
from dccl_flower.learning.losses import make_loss
from dccl_flower.learning.pretrain import pretrain
from dccl_flower.learning.samples import class_counts
from dccl_flower.models.build import build_base
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies.dc_ccl.cloud import Cloud


def train_co_centrally(
    experiment: Experiment, cloud: Cloud, after_round: OnRound = lambda done: None
) -> None:
    """Train the cloud's co-submodel, in place, on pooled data under the configuration's control."""
    conf, loader = experiment.conf, experiment.pooled_loader()
    counts = class_counts(loader, experiment.images.num_classes)
    with isolated_rng(conf.seed, "central", "torch"):
        train_pooled(
            cloud.co_submodel,
            cloud.control,
            loader,
            make_loss(conf.loss, lambda: counts),
            conf.rounds,
            torch_generator(conf.seed, "central"),
            experiment.torch_device,
            after_round,
        )


def train_base(experiment: Experiment, pooled: bool) -> Scores:
    """Train the uncut base model on the cloud's samples or on those of both sides; score it."""
    conf, images, plan = experiment.conf, experiment.images, experiment.plan
    model = build_base(conf, images.shape, images.num_classes)
    with isolated_rng(conf.seed, "base", "torch"):
        pretrain(
            model,
            experiment.base_loader(pooled),
            conf.pretrain,
            torch_generator(conf.seed, "base"),
            experiment.validation_loader(),
            experiment.compute,
        )
    logits, labels = predict(model, experiment.test_loader(), experiment.torch_device)
    return score_sides(logits, labels, plan.cloud_classes, plan.device_classes)
