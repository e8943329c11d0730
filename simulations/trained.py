"""What a finished run has trained, as modules that take images as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dccl_flower.checkpoint import load_models
from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.method import find_method
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.summary import read_results


class FromPixels(nn.Module):
    """A model behind what its training did to pixels: images (N, C, H, W) in 0..1 to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        for name, values in {"mean": mean, "std": std}.items():
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in 0..1 to logits (N, classes)."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Trained:
    """The models of a finished run, in evaluation mode, by the name of what they are for.

    ``served`` is what the run was scored by; with DC-CCL ``device`` is mimic + co, which a device
    can serve by itself. They take images of ``shape`` (C, H, W) in 0..1 and give logits.
    """

    conf: Conf
    modules: Mapping[str, FromPixels]
    shape: tuple[int, int, int]
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def load_run(folder: str | Path) -> Trained:
    """Return what a finished run has trained; its data need not be there.

    >>> served = load_run("runs/digits-seed0").modules["served"]  # doctest: +SKIP
    >>> served(torch.rand(1, 1, 8, 8)).argmax(1)  # doctest: +SKIP

    Raises ConfError for a folder without a finished run, for a method whose models do not serve
    images by themselves, and for models that are damaged or missing.
    """
    place = Path(folder).expanduser().resolve()
    results = read_results(place)
    conf = load_conf(str(place / CONF_FILE))
    kind = find_method(conf.method.name)
    if kind.trained is None:
        given = f"method.name={conf.method.name}"
        raise ConfError(f"{place}: {given}: its models do not serve images by themselves")
    try:
        data: dict[str, Any] = results["data"]
        channels, height, width = data["shape"]
        shape = (channels, height, width)
        states = load_models(place / "models")
        modules = kind.trained(conf, shape, data["num_classes"], states)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        cause = " ".join(str(error).split())
        raise ConfError(f"{place}/models: are not those of its conf.yaml: {cause}") from error
    pixels = data["mean"], data["std"]
    served = {name: FromPixels(module, *pixels).eval() for name, module in modules.items()}
    return Trained(conf, served, shape, data["classes"])
