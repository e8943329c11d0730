"""The cloud's side: cloud submodel, mimic, its copy of the co-submodel, and the cloud data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dccl_flower.config import DistilConf, PretrainConf
from dccl_flower.data.batches import Batches, as_batches, endless
from dccl_flower.learning.batch_statistics import OtherSide
from dccl_flower.learning.compute import CPU, Compute
from dccl_flower.learning.controlled import NOBODY, LocalRecipe, train_controlled
from dccl_flower.learning.distil import distil
from dccl_flower.learning.evaluate import Scorer
from dccl_flower.learning.exemplars import (
    balanced_rows,
    class_counts,
    head_inputs,
    herded_rows,
    take_exemplars,
)
from dccl_flower.learning.fusion import State
from dccl_flower.learning.head_tuning import head_gradient
from dccl_flower.learning.losses import LOSSES
from dccl_flower.learning.pretrain import pretrain
from dccl_flower.method import OnProgress
from dccl_flower.models.control import choose_control
from dccl_flower.models.frozen import copy_frozen, exchanged_state, frozen_names, load_exchanged
from dccl_flower.models.head import find_head
from dccl_flower.seeds import isolated_rng, torch_generator

CO_STARTS = ("base", "mimic")
EXEMPLAR_CHOICES = ("random", "herded")


class Cloud:
    """Owns what never leaves the server, and makes what does.

    ``mimic`` is the paper's control model. ``train_loader`` yields (images, labels) batches, as a
    DataLoader does; ``co_loader`` serves the rounds, where their batch size differs.
    ``validation_loader`` decides which epoch of pretraining and distillation is kept. ``control``
    names what stands in for the cloud submodel on both sides: the mimic, the cloud submodel itself
    (which a real device could not hold), or nothing. With ``co_start="mimic"`` the co-submodel
    takes over the mimic's weights, once distilled, with a head of zeros. Loaders yield pairs or
    dicts. ``head`` names the layer that gives the co-submodel's logits, where it cannot be found.
    """

    def __init__(
        self,
        cloud_submodel: nn.Module,
        mimic: nn.Module,
        co_submodel: nn.Module,
        train_loader: Any,
        *,
        co_loader: Any = None,
        validation_loader: Any = None,
        pretrain: PretrainConf | None = None,
        distil: DistilConf | None = None,
        control: str = "mimic",
        co_start: str = "base",
        head: str | None = None,
        seed: int = 0,
        compute: Compute = CPU,
        on_progress: OnProgress = lambda phase, done, total: None,
    ) -> None:
        if co_start not in CO_STARTS:
            raise ValueError(f"co_start={co_start!r}: expected one of {', '.join(CO_STARTS)}")
        self.cloud_submodel = cloud_submodel.to(compute.device)
        self.mimic = mimic.to(compute.device)
        self.co_submodel = co_submodel.to(compute.device)
        self.control = choose_control(control, mimic, cloud_submodel, co_submodel)
        self.control.to(compute.device)
        self.head, layer = find_head(co_submodel, name=head)
        self.num_classes = layer.out_features
        self.prepared = False
        self._train_loader = as_batches(train_loader)
        self._co_loader = self._train_loader if co_loader is None else as_batches(co_loader)
        self._validation_loader = validation_loader and as_batches(validation_loader)
        self._pretrain = pretrain or PretrainConf()
        self._distil = distil or DistilConf()
        self._seed = seed
        self._co_start = co_start
        self._compute = compute
        self._momentum: State = {}
        self._on_progress = on_progress
        self._counts: Tensor | None = None

    def prepare(self) -> None:
        """Pretrain the cloud submodel, share its stem, distil the mimic; only once."""
        if self.prepared:
            return
        self._run_phase("pretrain", self._pretrain_cloud)
        copy_frozen(self.cloud_submodel, self.mimic)
        self._run_phase("distil", self._distil_mimic)
        self._finish_preparation()

    def adopt(self, cloud_submodel: State, mimic: State) -> None:
        """Take over a prepared cloud submodel and mimic in place of :meth:`prepare`."""
        self.cloud_submodel.load_state_dict(cloud_submodel)
        self.mimic.load_state_dict(mimic)
        self._finish_preparation()

    def initial_co_state(self) -> State:
        """Return the co-submodel's first state; prepares the cloud where it needs the mimic."""
        if self._co_start == "mimic":
            self.prepare()
        return self.co_state()

    def co_state(self) -> State:
        """Return a copy of the co-submodel's exchanged state, on the CPU."""
        return {n: t.detach().cpu().clone() for n, t in exchanged_state(self.co_submodel).items()}

    def control_states(self) -> dict[str, State]:
        """Return what a device needs of the control, by names that say what it is."""
        states = self._named_control_states()
        return {name: state for name, state in states.items() if state}

    def example(self) -> Tensor:
        """Return two of the cloud's images, to measure models by."""
        images, _ = next(iter(self._train_loader))
        return images[:2]

    def exemplars(self, count: int, choice: str = "random") -> State:
        """Return ``count`` cloud samples, ``random`` or ``herded``."""
        if choice not in EXEMPLAR_CHOICES:
            allowed = ", ".join(EXEMPLAR_CHOICES)
            raise ValueError(f"exemplar_choice={choice!r}: expected one of {allowed}")
        with isolated_rng(self._seed, "exemplars", "torch"):
            return take_exemplars(self._train_loader, self._chooser(count, choice))

    def train_co(
        self,
        state: State,
        loss: str,
        recipe: LocalRecipe,
        server_round: int,
        correction: State | None = None,
        keep_momentum: bool = False,
        other: OtherSide = NOBODY,
    ) -> State:
        """Train a copy of the co-submodel under the control, as a device does, and return it."""
        load_exchanged(self.co_submodel, state)
        keys = ("train", "cloud", "round", server_round)
        with isolated_rng(self._seed, *keys, "torch"):
            batches = endless(self._co_loader, torch_generator(self._seed, *keys))
            train_controlled(
                self.co_submodel,
                self.control,
                batches,
                LOSSES[loss](self.class_counts),
                recipe,
                self._compute.device,
                correction=correction,
                momentum=self._momentum if keep_momentum else None,
                other=other,
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
                self.control,
                endless(self._co_loader, torch_generator(self._seed, *keys)),
                LOSSES[loss](self.class_counts),
                num_batches,
                self._compute.device,
            )
        return gradient

    def class_counts(self) -> Tensor:
        """Return the cloud's training samples a class (classes,)."""
        if self._counts is None:
            with isolated_rng(self._seed, "class counts"):
                self._counts = class_counts(self._co_loader, self.num_classes)
        return self._counts

    def scorer(
        self, test_loader: Any, cloud_classes: list[int], device_classes: list[int]
    ) -> Scorer:
        """Return a scorer of served models on a test set; prepares the cloud first."""
        self.prepare()
        return Scorer(
            self.cloud_submodel,
            self.mimic,
            self.co_submodel,
            as_batches(test_loader),
            cloud_classes,
            device_classes,
            self._compute.device,
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
        self.adopt(state["cloud_submodel"], state["mimic"])
        self.co_submodel.load_state_dict(state["co_submodel"])

    def _chooser(self, count: int, choice: str) -> Callable[[Batches], Tensor]:
        if choice == "herded":
            device = self._compute.device
            return lambda loader: herded_rows(
                *head_inputs(self.cloud_submodel, loader, device), count
            )
        generator = torch_generator(self._seed, "exemplars")
        return lambda loader: balanced_rows(loader.targets, count, generator)

    def _finish_preparation(self) -> None:
        # Where they come from must not show: training may have left them in another layout.
        for model in (self.cloud_submodel, self.mimic):
            self._compute.module(model)
        for model in (self.co_submodel, self.control):
            copy_frozen(self.cloud_submodel, model)
        if self._co_start == "mimic":
            self._start_from_mimic()
        for model in (self.cloud_submodel, self.mimic):
            model.requires_grad_(False)
        self.prepared = True

    def _named_control_states(self) -> dict[str, State]:
        if self.control is self.cloud_submodel:
            return {"cloud_submodel": self.control.state_dict()}
        shared = tuple(f"{name}." for name in frozen_names(self.control))
        parts: dict[str, State] = {"cloud_stem": {}, "mimic": {}}
        for name, tensor in self.control.state_dict().items():
            parts["cloud_stem" if name.startswith(shared) else "mimic"][name] = tensor
        return parts

    def _start_from_mimic(self) -> None:
        load_exchanged(self.co_submodel, exchanged_state(self.mimic))
        for parameter in self.co_submodel.get_submodule(self.head).parameters():
            nn.init.zeros_(parameter)

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
            self._compute,
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
            self._compute,
            lambda done, total: self._on_progress(phase, done, total),
        )
