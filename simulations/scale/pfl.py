"""The turns of ``dccl scale`` in pfl-research.

https://github.com/apple/pfl-research, which ``requirements-bench.txt`` installs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.simulations.scale.workload import (
    RoundMeter,
    co_submodel,
    device_samples,
    draw_cohort,
    process_costs,
)

NEVER = 10**9


def is_installed() -> bool:
    """Tell whether pfl-research can be imported here."""
    return find_spec("pfl") is not None


def measure(experiment: ImageExperiment, *_: object) -> dict[str, Any]:
    """Return the costs of rounds of federated averaging.

    pfl scores every device before and after the turn in the first of its iterations, which is
    therefore taken beforehand and not counted.
    """
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"  # which pfl reads when it is imported
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams

    rounds, cohort = experiment.conf.rounds, experiment.cohort_size
    meter = RoundMeter(cohort)
    model = pfl_model(experiment)
    devices = FederatedDataset(partial(pfl_dataset, experiment), cohort_sampler(experiment))
    first_turn_at = time.time()
    meter.begin()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds.count + 1,
            evaluation_frequency=NEVER,
            train_cohort_size=cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=devices, val_data=devices),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=rounds.lr,
            local_batch_size=rounds.device_batch_size,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[end_of_round(meter)],
    )
    return process_costs({"none": meter.costs[1:]}, first_turn_at)


def end_of_round(meter: RoundMeter) -> Any:
    """Return what has pfl tell a meter of its rounds."""
    from pfl.callback.base import TrainingProcessCallback
    from pfl.metrics import Metrics

    class EndOfRound(TrainingProcessCallback):  # type: ignore[misc, type-arg, unused-ignore]
        def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
            meter.end_round()
            return False, Metrics()

    return EndOfRound()


class PflModule(nn.Module):
    """A classifier with the two methods that pfl asks of a module."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.classifier(images)
        return logits

    def loss(self, images: Tensor, labels: Tensor, eval: bool = False) -> Tensor:
        """Return the mean cross-entropy that a step minimises."""
        self.train(not eval)
        return functional.cross_entropy(self(images), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor, eval: bool = True) -> dict[str, Any]:
        """Return pfl's metric of a batch: the summed loss and the number of samples."""
        from pfl.metrics import Weighted

        total = self.loss(images, labels, eval).item() * len(labels)
        return {"loss": Weighted(total, len(labels))}


def pfl_model(experiment: ImageExperiment) -> Any:
    """Return the co-submodel as pfl trains it, by the device's SGD; the server adds up changes."""
    from pfl.model.pytorch import PyTorchModel

    rounds, module = experiment.conf.rounds, PflModule(co_submodel(experiment))
    sgd = partial(torch.optim.SGD, momentum=rounds.momentum, weight_decay=rounds.weight_decay)
    return PyTorchModel(module, sgd, torch.optim.SGD(module.parameters(), lr=1.0))


def pfl_dataset(experiment: ImageExperiment, device: int) -> Any:
    """Return a device's dataset as pfl has them, of as many samples as its steps take.

    pfl takes samples in order, epoch after epoch, and stops at the end of one.
    """
    from pfl.data.dataset import Dataset

    rounds = experiment.conf.rounds
    images, labels = device_samples(experiment, device)
    chosen = torch.arange(rounds.local_steps * rounds.device_batch_size) % len(labels)
    return Dataset(raw_data=[images[chosen], labels[chosen]], user_id=str(device))


def cohort_sampler(experiment: ImageExperiment) -> Callable[[], int]:
    """Return what gives pfl one device after the other, cohort by cohort."""
    devices = (d for number in count(1) for d in reversed(draw_cohort(experiment, number)))
    return partial(next, devices)
