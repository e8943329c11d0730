"""What ICIIA takes a device: its turns by the virtual clock, and what it serves."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from dccl_flower.device_store import Parcel
from dccl_flower.fleet.tiers import Load, Piece
from dccl_flower.image_config import RoundsConf
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.learning.cost import (
    FLOPS_A_MAC,
    Cost,
    batch_cost,
    forward_macs,
    model_cost,
    scoring_cost,
    training_memory,
)
from dccl_flower.method import Served
from dccl_flower.models.features import Featured
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.strategies.iciia.cloud import MODULE
from dccl_flower.strategies.iciia.conf import conf_of
from dccl_flower.strategies.iciia.device import BACKBONE

CORRECT_BYTES = 3 * 8  # how many images are right, in three ways


@dataclass(frozen=True)
class Held:
    """What a device holds: the backbone, and the module on top of it."""

    experiment: ImageExperiment
    backbone: Featured
    module: nn.Module

    def served(self) -> Served:
        """Return both with what each is given for a batch of images."""
        size = conf_of(self.experiment).adaptation.batch_size
        images = torch.zeros(size, *self.experiment.images.shape)
        return {BACKBONE: (self.backbone, images), MODULE: (self.module, self._features(size))}

    def turn_load(self, rounds: RoundsConf) -> Load:
        """Return what a turn takes a device with as many images as devices have in the mean.

        The backbone comes once, and with it the module where the cloud trains it; it sees images
        once that nothing augments. Each is served beside as many others as may be, and the last
        layer is tuned for all epochs. Where the cloud serves there is nothing to do.
        """
        conf = conf_of(self.experiment)
        if conf.method.serves == "cloud":
            return Load([Piece()])
        devices, plan = range(conf.devices.count), self.experiment.plan
        new = fmean(self.experiment.device_test_loader(d).num_samples for d in devices)
        is_federated, is_tuned = conf.method.training == "federated", self._is_tuned
        own = fmean(len(plan.devices[d]) for d in devices) if is_federated or is_tuned else 0.0
        kept = own if self.experiment.device_loader(0).is_fixed else 0.0
        seeing = FLOPS_A_MAC * forward_macs(self.backbone, self.experiment.example[:1])
        pieces, state = [Piece(flops=seeing * (own - kept))], {}
        parcels: list[nn.Module] = [self.backbone]
        if is_federated:
            state = exchanged_state(self.module)
            pieces += [Piece(state, state), self._steps(rounds)]
        else:
            parcels.append(self.module)
        if is_tuned:
            pieces.append(self._tuning(own))
        pieces += [Piece(state, up_bytes=CORRECT_BYTES), self._serving(new)]
        keep_bytes = sum(len(Parcel.of(each.state_dict()).blob()) for each in parcels)
        return Load(pieces, keep_bytes, seeing * (new + kept))

    @property
    def _is_tuned(self) -> bool:
        return conf_of(self.experiment).adaptation.by == "fine_tuning"

    def _features(self, size: int) -> Tensor:
        """Return blank features of so many images; a prompt's last column tells the device."""
        is_numbered = conf_of(self.experiment).adaptation.by == "prompt"
        return torch.zeros(size, self.backbone.width + is_numbered)

    def _steps(self, rounds: RoundsConf) -> Piece:
        batch = self._features(conf_of(self.experiment).adaptation.batch_size)
        cost = batch_cost(self.module, batch)
        memory = training_memory(cost, self._beside, 1, int(rounds.momentum > 0))
        return Piece(flops=rounds.local_steps * cost.training_flops, memory=memory)

    def _tuning(self, own: float) -> Piece:
        conf, head = conf_of(self.experiment).adaptation, deepcopy(self.module)
        cost = model_cost(head.requires_grad_(True), self._features(1))
        memory = training_memory(cost, self._beside, conf.batch_size, int(conf.momentum > 0))
        return Piece(flops=conf.epochs * own * cost.training_flops, memory=memory)

    def _serving(self, new: float) -> Piece:
        conf = conf_of(self.experiment).adaptation
        view, answered = (conf.batch_size,) * 2 if conf.cached is None else (conf.cached + 1, 1)
        macs = forward_macs(self.module, self._features(view)) / answered
        module_bytes = sum(tensor.nbytes for tensor in self.module.state_dict().values())
        seen = scoring_cost(self.backbone, self.experiment.example)
        memory = seen.state_bytes + module_bytes + conf.batch_size * seen.layer_bytes
        return Piece(flops=FLOPS_A_MAC * new * macs, memory=memory)

    @property
    def _beside(self) -> Cost:
        """The backbone, which stays in memory and sees nothing while the module trains."""
        held = scoring_cost(self.backbone, self.experiment.example)
        return Cost(state_bytes=held.state_bytes)
