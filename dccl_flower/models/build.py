"""Build the submodels that a configuration describes, and try them on images of its shape."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from operator import attrgetter
from typing import TypeVar, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dccl_flower.config import ConfError
from dccl_flower.image_config import ImageConf, SubmodelsConf
from dccl_flower.models.control import CONTROLS, Submodels
from dccl_flower.models.head import find_head
from dccl_flower.models.normalisation import NORM_RULES
from dccl_flower.models.split import slice_cloud, slice_co
from dccl_flower.models.zoo import build_model, check_model
from dccl_flower.seeds import isolated_rng

BASE = "model.base"
# What tells what is wrong by its text alone; of other errors the kind tells too.
TOLD = (RuntimeError, ValueError, AssertionError, TimeoutError)
Shape = tuple[int, int, int]
Chosen = TypeVar("Chosen")


def build_submodels(conf: SubmodelsConf, shape: Shape, num_classes: int) -> Submodels:
    """Build cloud submodel, co-submodel and mimic for images of shape (C, H, W).

    Without names of their own the co-submodel is a slice of the base model and the mimic has the
    co-submodel's architecture; a co-submodel with its own backbone leaves the base model whole.
    Raises ConfError where a model does not go with the images or cannot be cut.
    """
    parts = Parts(conf, shape, num_classes)
    return Submodels(parts.cloud, parts.co, parts.mimic)


def build_base(conf: ImageConf, shape: Shape, num_classes: int, fetch: bool = True) -> nn.Module:
    """Build the uncut base model, with the weights that the submodels are cut from.

    Without ``fetch`` no pretrained weights are loaded. Raises ConfError where it does not go with
    the images.
    """
    # Of the sections of a configuration that cuts its base model this part reads none.
    return Parts(cast(SubmodelsConf, conf), shape, num_classes, fetch).base


def build_device_modules(
    conf: SubmodelsConf, shape: Shape, num_classes: int
) -> tuple[nn.Module, nn.Module]:
    """Build co-submodel and control as a device does: architectures only, weights come by wire.

    Raises ConfError where a model does not go with the images or cannot be cut.
    """

    def choose(parts: Parts) -> tuple[nn.Module, nn.Module]:
        return parts.co.eval(), CONTROLS[conf.control](parts).eval()

    modules = build_without_data(conf, shape, num_classes, choose)
    if any(_computes_with_more_than_its_state(module) for module in modules):
        modules = choose(Parts(conf, shape, num_classes, fetch=False))
    for module in modules:
        if any(tensor.is_meta for tensor in module.state_dict().values()):
            module.to_empty(device="cpu")
            for tensor in module.state_dict().values():
                tensor.zero_()
    return modules


def build_without_data(
    conf: SubmodelsConf, shape: Shape, num_classes: int, choose: Callable[[Parts], Chosen]
) -> Chosen:
    """Return what is chosen of the submodels, without data where they can be built and cut so.

    Weights are neither loaded nor drawn then, so a large base model costs no memory. Raises
    ConfError where a model does not go with the images or cannot be cut.
    """
    try:
        with torch.device("meta"):
            return choose(Parts(conf, shape, num_classes, fetch=False))
    except ConfError as error:
        if isinstance(error.__cause__, ConfError | TimeoutError):  # found wrong by shapes alone
            raise
        return choose(Parts(conf, shape, num_classes, fetch=False))


class Parts:
    """The submodels of a configuration, each built and tried when it is first asked for.

    Without ``fetch`` no pretrained weights are loaded. Attributes raise ConfError where a model
    does not go with the images or cannot be cut.
    """

    def __init__(
        self, conf: SubmodelsConf, shape: Shape, num_classes: int, fetch: bool = True
    ) -> None:
        self._conf, self._fetch = conf, fetch
        self._shape, self._num_classes = shape, num_classes
        self._example = torch.zeros(2, *shape)

    @cached_property
    def base(self) -> nn.Module:
        """The base model, uncut."""
        return self._whole("base")

    @cached_property
    def cloud(self) -> nn.Module:
        """The cloud submodel: the larger part of the base model, or all of it."""
        return self._cut(self.base, slice_cloud) if self.key("co") == BASE else self.base

    @cached_property
    def co(self) -> nn.Module:
        """The co-submodel, normalised as the configuration says."""
        # A slice is cut from the very base that the cloud submodel is cut from.
        is_slice = self.key("co") == BASE
        co = self._cut(self.base, slice_co) if is_slice else self._whole("co")
        with self.blaming(self.key("co")):
            for change in NORM_RULES[self._conf.normalisation].changes:
                change(co)
            self._try(co)
            find_head(co, example=self._example)
        return co

    @cached_property
    def mimic(self) -> nn.Module:
        """The mimic, with weights of its own."""
        whole = self._whole("mimic")
        return self._cut(whole, slice_co) if self.key("mimic") == BASE else whole

    def key(self, part: str) -> str:
        """Return the key of the configuration that decides the architecture of a part."""
        model = self._conf.model
        if part == "mimic" and model.mimic.name is not None:
            return "model.mimic.name"
        return "model.co.name" if part in ("co", "mimic") and model.co.name is not None else BASE

    @contextmanager
    def blaming(self, key: str, fault: str = "") -> Iterator[None]:
        """Turn what foreign code raises inside into one line that names the key and the fault.

        A library tells by any exception at all that it does not like a model or an image.
        """
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            said = str(error)
            if not isinstance(error, ConfError):
                fault = fault or f"does not go with images {self._shape}"
                said = f"{fault} ({_cause(error)})"
            elif said.startswith("model."):
                raise
            raise ConfError(f"{key}={attrgetter(key)(self._conf)}: {said}") from error

    def _whole(self, part: str) -> nn.Module:
        """Build the model that a part is, or is cut from, with weights for that part alone."""
        key, conf, channels = self.key(part), self._conf, self._shape[0]
        name, section = attrgetter(key, key.rpartition(".")[0])(conf)
        pretrained = self._fetch and section.pretrained
        check_model(key, name, channels)
        how = (name, channels, self._num_classes, pretrained, conf.seed, part)
        with self._loading(key) as weights:
            model = build_model(*how, size=self._shape[1:], weights=weights)
        with self.blaming(key):
            self._try(model)
        return model

    @contextmanager
    def _loading(self, key: str) -> Iterator[dict[str, Tensor] | None]:
        """Open the file of weights of a model, if it has one, which then is to blame."""
        path = f"{key.rpartition('.')[0]}.weights"
        file = attrgetter(path)(self._conf) if self._fetch else None
        with self.blaming(path if file else key, "cannot be loaded" if file else ""):
            yield load_file(file) if file else None

    def _cut(self, whole: nn.Module, cut: Callable[..., nn.Module]) -> nn.Module:
        model = self._conf.model
        with self.blaming(BASE, "cannot be cut by width; set model.co.name"):
            return cut(whole, self._example, model.co_ratio, model.shared_stem)

    def _try(self, model: nn.Module) -> None:
        """Raise what the model raises for the images, or ValueError where it gives no logits."""
        tried, expected = copy.deepcopy(model), (len(self._example), self._num_classes)
        with isolated_rng(self._conf.seed, "try"), torch.no_grad():
            for training in (False, True):
                output = tried.train(training)(self._example)
                is_tensor = isinstance(output, Tensor)
                given = tuple(output.shape) if is_tensor else type(output).__name__
                if given != expected:
                    raise ValueError(f"gives {given}, expected logits {expected}")


def _cause(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    is_told = isinstance(error, TOLD) and line
    return line if is_told else f"{type(error).__name__}: {line}".rstrip(": ")


def _computes_with_more_than_its_state(module: nn.Module) -> bool:
    """Tell whether the module needs what its state, and so the wire, leaves out.

    That is a buffer that is not saved, a tensor that is none, or one tensor under two names.
    """
    state = module.state_dict()
    hidden = any(name not in state for name, _ in module.named_buffers())
    loose = any(isinstance(v, Tensor) for part in module.modules() for v in vars(part).values())
    tied = len(list(module.parameters())) < len(
        list(module.named_parameters(remove_duplicate=False))
    )
    return hidden or loose or tied
