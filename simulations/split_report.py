"""``dccl split``: what a base model, its cloud submodel and its co-submodel are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn

from dccl_flower.config import ConfError
from dccl_flower.image_config import MimicModelConf, SubmodelsConf
from dccl_flower.learning.cost import model_cost
from dccl_flower.models.build import Parts, build_without_data
from dccl_flower.models.zoo import own_images
from dccl_flower.simulations.reports import table

COLUMNS = ("model", "part", "parameters", "of the base", "MACs an image", "gives")
CHANNELS = 3


@dataclass(frozen=True)
class Half:
    """A model, or a part of it, in counts; what it gives for one image has the shape ``gives``."""

    parameters: int
    macs: int
    gives: tuple[int, ...]


def parse_ratio(text: str) -> float:
    """Return a share given as a number or a fraction. Raises ConfError for what is none."""
    try:
        ratio = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        ratio = 0.0
    if not 0 < ratio < 1:
        raise ConfError(f"--ratio {text}: must lie between 0 and 1, as 1/8 or 0.125 does")
    return ratio


def split_model(
    name: str, ratio: float, num_classes: int, size: int | None = None
) -> dict[str, Half]:
    """Return base, cloud submodel and co-submodel for RGB images, of the model's own size if none.

    No weights are loaded or drawn. Raises ConfError where the model cannot be built or cut.
    """
    height, width = own_images(name).size if size is None else (size, size)
    conf = SubmodelsConf(model=MimicModelConf(base=name, co_ratio=ratio))
    example = torch.zeros(1, CHANNELS, height, width)

    def halves(parts: Parts) -> dict[str, Half]:
        models = {"base": parts.base, "cloud": parts.cloud, "co": parts.co}
        with parts.blaming("model.base"):
            return {part: _half(model, example) for part, model in models.items()}

    return build_without_data(conf, (CHANNELS, height, width), num_classes, halves)


def split_table(found: dict[str, dict[str, Half] | str]) -> str:
    """Return a Markdown table over models, those that cannot be cut with the reason.

    Of several models it is said first how many can be cut.
    """
    rows: list[Sequence[str]] = []
    for name, halves in found.items():
        if isinstance(halves, str):
            rows.append([f"`{name}`", halves, "", "", "", ""])
            continue
        whole = halves["base"].parameters
        for part, half in halves.items():
            share = f"{half.parameters / whole:.1%}"
            shape = " x ".join(map(str, half.gives))
            rows.append([f"`{name}`", part, f"{half.parameters:,}", share, f"{half.macs:,}", shape])
    cut = sum(not isinstance(halves, str) for halves in found.values())
    told = [f"{cut} of {len(found)} can be cut."] if len(found) > 1 else []
    return "\n\n".join([*told, table(COLUMNS, rows, words=2)])


def _half(model: nn.Module, example: torch.Tensor) -> Half:
    cost = model_cost(model, example)
    with torch.no_grad():
        bare = model.to("meta").eval()
        gives = tuple(bare(example.to("meta")).shape[1:])
    return Half(cost.parameters, cost.forward_macs, gives)
