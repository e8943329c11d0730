"""The cloud's side: cloud submodel, mimic, its copy of the co-submodel, and the cloud data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from dccl_flower.data.batches import Pair, as_batches, endless
from dccl_flower.image_config import DistilConf, PretrainConf
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
ROLES = ("cloud_submodel", "mimic", "co_submodel")


@dataclass(frozen=True)
class CloudOptions:
    """What a cloud may be told beside its models and data.

    ``co_loader`` serves the rounds, where their batch size differs. ``validation_loader`` decides
    which epoch of pretraining and distillation is kept. ``control`` names what stands in for the
    cloud submodel on both sides: the ``mimic``, the ``cloud_submodel`` itself (which a real device
    could not hold), or ``none``. With ``co_start="mimic"`` the co-submodel takes over the mimic's
    weights, once distilled, with a head of zeros. ``head`` names the layer that gives the
    co-submodel's logits, where it cannot be found. Raises ValueError for an unknown ``co_start``.
    """

    co_loader: Any = None
    validation_loader: Any = None
    pretrain: PretrainConf | None = None
    distil: DistilConf | None = None
    control: str = "mimic"
    co_start: str = "base"
    head: str | None = None
    seed: int = 0
    compute: Compute = CPU
    on_progress: OnProgress = lambda phase, done, total, loss=None: None

    def __post_init__(self) -> None:
        if self.co_start not in CO_STARTS:
            known = ", ".join(CO_STARTS)
            raise ValueError(f"co_start={self.co_start!r}: expected one of {known}")


class Cloud:
    """Owns what never leaves the server, and makes what does.

    ``mimic`` is the paper's control model. ``train_loader`` yields (images, labels) batches, or
    dicts, as a DataLoader does; all other loaders likewise. ``options`` are those of
    :class:`CloudOptions`. ``momentum`` is what its copy of the co-submodel keeps from round to
    round, where asked to.
    """

    def __init__(
        self,
        cloud_submodel: nn.Module,
        mimic: nn.Module,
        co_submodel: nn.Module,
        train_loader: Any,
        **options: Any,
    ) -> None:
        self._options = given = CloudOptions(**options)
        self._device = given.compute.device
        self.cloud_submodel = cloud_submodel.to(self._device)
        self.mimic = mimic.to(self._device)
        self.co_submodel = co_submodel.to(self._device)
        self.control = choose_control(given.control, mimic, cloud_submodel, co_submodel)
        self.control.to(self._device)
        self.head, layer = find_head(co_submodel, name=given.head)
        self.num_classes = layer.out_features
        self.prepared = False
        self._train_loader = as_batches(train_loader)
        self._co_loader = as_batches(train_loader if given.co_loader is None else given.co_loader)
        held_out = given.validation_loader
        self._validation_loader = held_out and as_batches(held_out)
        self.momentum: State = {}

    def prepare(self) -> None:
        """Pretrain the cloud submodel, share its stem, distil the mimic; only once."""
        if self.prepared:
            return
        cloud, batches, given = self.cloud_submodel, self._train_loader, self._options
        self._phase("pretrain", pretrain, cloud, batches, given.pretrain or PretrainConf())
        copy_frozen(cloud, self.mimic)
        self._phase("distil", distil, self.mimic, cloud, batches, given.distil or DistilConf())
        self._finish_preparation()

    def adopt(self, cloud_submodel: State, mimic: State) -> None:
        """Take over a prepared cloud submodel and mimic in place of :meth:`prepare`."""
        self.cloud_submodel.load_state_dict(cloud_submodel)
        self.mimic.load_state_dict(mimic)
        self._finish_preparation()

    def initial_co_state(self) -> State:
        """Return the co-submodel's first state; prepares the cloud where it needs the mimic."""
        if self._options.co_start == "mimic":
            self.prepare()
        return self.co_state()

    def co_state(self) -> State:
        """Return a copy of the co-submodel's exchanged state, on the CPU."""
        return {n: t.detach().cpu().clone() for n, t in exchanged_state(self.co_submodel).items()}

    def control_states(self) -> dict[str, State]:
        """Return what a device needs of the control, by names that say what it is."""
        if self.control is self.cloud_submodel:
            return {"cloud_submodel": self.control.state_dict()}
        shared = tuple(f"{name}." for name in frozen_names(self.control))
        parts: dict[str, State] = {"cloud_stem": {}, "mimic": {}}
        for name, tensor in self.control.state_dict().items():
            parts["cloud_stem" if name.startswith(shared) else "mimic"][name] = tensor
        return {name: part for name, part in parts.items() if part}

    @cached_property
    def example(self) -> Tensor:
        """Two of the cloud's images, to measure models by."""
        images, _ = next(iter(self._train_loader))
        return images[:2]

    def exemplars(self, count: int, choice: str = "random") -> State:
        """Return ``count`` cloud samples, ``random`` or ``herded``, as ``Batches.taken`` does."""
        if choice not in EXEMPLAR_CHOICES:
            allowed = ", ".join(EXEMPLAR_CHOICES)
            raise ValueError(f"exemplar_choice={choice!r}: expected one of {allowed}")
        with isolated_rng(self._options.seed, "exemplars", "torch"):
            samples = self._train_loader.in_fixed_order()
            if choice == "herded":
                inputs = head_inputs(self.cloud_submodel, samples, self._device)
                return samples.taken(herded_rows(*inputs, count))
            generator = torch_generator(self._options.seed, "exemplars")
            return samples.taken(balanced_rows(samples.targets, count, generator))

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
        with self._turn(state, "train", server_round) as batches:
            train_controlled(
                self.co_submodel,
                self.control,
                batches,
                LOSSES[loss](self.class_counts),
                recipe,
                self._device,
                correction=correction,
                momentum=self.momentum if keep_momentum else None,
                other=other,
            )
        return self.co_state()

    def head_gradient(
        self, state: State, loss: str, num_batches: int, server_round: int, step: int
    ) -> State:
        """Return the mean gradient of the head over some of the cloud's batches."""
        with self._turn(state, "head", server_round, step) as batches:
            made = LOSSES[loss](self.class_counts)
            models = self.co_submodel, self.control
            gradient, _ = head_gradient(*models, batches, made, num_batches, self._device)
        return gradient

    def class_counts(self) -> Tensor:
        """Return the cloud's training samples a class (classes,)."""
        return self._counts

    def scorer(
        self, test_loader: Any, cloud_classes: list[int], device_classes: list[int]
    ) -> Scorer:
        """Return a scorer of served models on a test set; prepares the cloud first."""
        self.prepare()
        models = self.cloud_submodel, self.mimic, self.co_submodel
        batches = as_batches(test_loader)
        return Scorer(*models, batches, cloud_classes, device_classes, self._device)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the weights of the three submodels, by role."""
        return {role: getattr(self, role).state_dict() for role in ROLES}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over weights of :meth:`state_dict`; the cloud then counts as prepared."""
        self.adopt(state["cloud_submodel"], state["mimic"])
        self.co_submodel.load_state_dict(state["co_submodel"])

    @cached_property
    def _counts(self) -> Tensor:
        with isolated_rng(self._options.seed, "class counts"):
            return class_counts(self._co_loader, self.num_classes)

    @contextmanager
    def _turn(self, state: State, purpose: str, *keys: int) -> Iterator[Iterator[Pair]]:
        """Load a state; inside, random draws are those of this turn, as are the batches."""
        load_exchanged(self.co_submodel, state)
        turn: list[str | int] = [purpose, "cloud", "round", *keys]
        with isolated_rng(self._options.seed, *turn, "torch"):
            yield endless(self._co_loader, torch_generator(self._options.seed, *turn))

    def _phase(self, name: str, train: Callable[..., None], *of_phase: Any) -> None:
        given = self._options
        with isolated_rng(given.seed, name, "torch"):
            generator, tell = torch_generator(given.seed, name), partial(given.on_progress, name)
            train(*of_phase, generator, self._validation_loader, given.compute, tell)

    def _finish_preparation(self) -> None:
        # Where they come from must not show: training may have left them in another layout.
        for model in (self.cloud_submodel, self.mimic):
            self._options.compute.module(model)
        for model in (self.co_submodel, self.control):
            copy_frozen(self.cloud_submodel, model)
        if self._options.co_start == "mimic":
            load_exchanged(self.co_submodel, exchanged_state(self.mimic))
            for parameter in self.co_submodel.get_submodule(self.head).parameters():
                nn.init.zeros_(parameter)
        for model in (self.cloud_submodel, self.mimic):
            model.requires_grad_(False)
        self.prepared = True
