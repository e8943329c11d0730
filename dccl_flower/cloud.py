"""The cloud's side: cloud submodel, mimic, its copy of the co-submodel, and the cloud data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from dccl_flower.config import DistilConf, PretrainConf
from dccl_flower.data.loader import Loader, endless
from dccl_flower.learning.controlled import LocalRecipe, train_controlled
from dccl_flower.learning.distil import distil
from dccl_flower.learning.evaluate import Scorer
from dccl_flower.learning.fusion import State
from dccl_flower.learning.head_tuning import head_gradient
from dccl_flower.learning.losses import Loss, make_loss
from dccl_flower.learning.pretrain import pretrain
from dccl_flower.learning.samples import class_counts, take_exemplars
from dccl_flower.models.frozen import copy_frozen, exchanged_state, load_exchanged
from dccl_flower.models.zoo import find_head
from dccl_flower.seeds import isolated_rng, torch_generator

OnProgress = Callable[[str, int, int], None]


class Cloud:
    """Owns what never leaves the server, and makes what does.

    ``mimic`` is the paper's control model. ``train_loader`` yields (images, labels) batches, as a
    DataLoader does; ``co_loader`` serves the rounds, where their batch size differs.
    ``validation_loader`` decides which epoch of pretraining and distillation is kept.
    """

    def __init__(
        self,
        cloud_submodel: nn.Module,
        mimic: nn.Module,
        co_submodel: nn.Module,
        train_loader: Loader,
        *,
        co_loader: Loader | None = None,
        validation_loader: Loader | None = None,
        pretrain: PretrainConf | None = None,
        distil: DistilConf | None = None,
        seed: int = 0,
        torch_device: torch.device | str = "cpu",
        on_progress: OnProgress = lambda phase, done, total: None,
    ) -> None:
        self.cloud_submodel = cloud_submodel.to(torch_device)
        self.mimic = mimic.to(torch_device)
        self.co_submodel = co_submodel.to(torch_device)
        self.num_classes = find_head(co_submodel)[1].out_features
        self.prepared = False
        self._train_loader = train_loader
        self._co_loader = co_loader or train_loader
        self._validation_loader = validation_loader
        self._pretrain = pretrain or PretrainConf()
        self._distil = distil or DistilConf()
        self._seed = seed
        self._torch_device = torch_device
        self._on_progress = on_progress
        self._counts: Tensor | None = None

    def prepare(self) -> None:
        """Pretrain the cloud submodel, share its stem, distil the mimic; only once."""
        if self.prepared:
            return
        self._run_phase("pretrain", self._pretrain_cloud)
        copy_frozen(self.cloud_submodel, self.mimic)
        copy_frozen(self.cloud_submodel, self.co_submodel)
        self._run_phase("distil", self._distil_mimic)
        self._freeze()

    def co_state(self) -> State:
        """Return a copy of the co-submodel's exchanged state, on the CPU."""
        return {n: t.detach().cpu().clone() for n, t in exchanged_state(self.co_submodel).items()}

    def mimic_blob(self) -> bytes:
        """Return the mimic, a shared stem included, as safetensors bytes."""
        return _to_bytes(self.mimic.state_dict())

    def exemplar_blob(self, count: int) -> bytes:
        """Return ``count`` cloud samples as safetensors bytes."""
        with isolated_rng(self._seed, "exemplars", "torch"):
            generator = torch_generator(self._seed, "exemplars")
            return _to_bytes(take_exemplars(self._train_loader, count, generator))

    def train_co(self, state: State, loss: str, recipe: LocalRecipe, server_round: int) -> State:
        """Train a copy of the co-submodel under the mimic, as a device does, and return it."""
        load_exchanged(self.co_submodel, state)
        keys = ("train", "cloud", "round", server_round)
        with isolated_rng(self._seed, *keys, "torch"):
            batches = endless(self._co_loader, torch_generator(self._seed, *keys))
            side_loss = self._loss(loss)
            train_controlled(
                self.co_submodel, self.mimic, batches, side_loss, recipe, self._torch_device
            )
        return self.co_state()

    def head_gradient(
        self, state: State, loss: str, num_batches: int, server_round: int, step: int
    ) -> State:
        """Return the mean gradient of the head over some of the cloud's batches."""
        load_exchanged(self.co_submodel, state)
        keys = ("head", "cloud", "round", server_round, step)
        with isolated_rng(self._seed, *keys, "torch"):
            gradient, _ = head_gradient(
                self.co_submodel,
                self.mimic,
                endless(self._co_loader, torch_generator(self._seed, *keys)),
                self._loss(loss),
                num_batches,
                self._torch_device,
            )
        return gradient

    def scorer(
        self, test_loader: Loader, cloud_classes: list[int], device_classes: list[int]
    ) -> Scorer:
        """Return a scorer of served models on a test set; prepares the cloud first."""
        self.prepare()
        return Scorer(
            self.cloud_submodel,
            self.mimic,
            self.co_submodel,
            test_loader,
            cloud_classes,
            device_classes,
            self._torch_device,
        )

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the weights of the three submodels, by role."""
        return {
            "cloud_submodel": self.cloud_submodel.state_dict(),
            "mimic": self.mimic.state_dict(),
            "co_submodel": self.co_submodel.state_dict(),
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over weights of :meth:`state_dict`; the cloud then counts as prepared."""
        self.cloud_submodel.load_state_dict(state["cloud_submodel"])
        self.mimic.load_state_dict(state["mimic"])
        self.co_submodel.load_state_dict(state["co_submodel"])
        self._freeze()

    def _freeze(self) -> None:
        for model in (self.cloud_submodel, self.mimic):
            model.requires_grad_(False)
        self.prepared = True

    def _loss(self, name: str) -> Loss:
        return make_loss(name, self._class_counts)

    def _class_counts(self) -> Tensor:
        if self._counts is None:
            with isolated_rng(self._seed, "class counts"):
                self._counts = class_counts(self._co_loader, self.num_classes)
        return self._counts

    def _run_phase(self, phase: str, work: Callable[[torch.Generator, str], None]) -> None:
        with isolated_rng(self._seed, phase, "torch"):
            work(torch_generator(self._seed, phase), phase)

    def _pretrain_cloud(self, generator: torch.Generator, phase: str) -> None:
        pretrain(
            self.cloud_submodel,
            self._train_loader,
            self._pretrain,
            generator,
            self._validation_loader,
            self._torch_device,
            lambda done, total: self._on_progress(phase, done, total),
        )

    def _distil_mimic(self, generator: torch.Generator, phase: str) -> None:
        distil(
            self.mimic,
            self.cloud_submodel,
            self._train_loader,
            self._distil,
            generator,
            self._validation_loader,
            self._torch_device,
            lambda done, total: self._on_progress(phase, done, total),
        )


def _to_bytes(state: State) -> bytes:
    return save_safetensors({name: t.cpu().contiguous() for name, t in state.items()})
