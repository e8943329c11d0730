"""``dccl cost``: what the models of a configuration cost, and what a device is spared."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from rich import box
from rich.filesize import pick_unit_and_suffix
from rich.table import Table

from dccl_flower.config import Conf
from dccl_flower.image_config import SubmodelsConf, with_submodels
from dccl_flower.image_experiment import shape_of
from dccl_flower.learning.cost import Cost, model_cost, training_memory, turn_flops
from dccl_flower.models.build import Parts, build_without_data
from dccl_flower.models.control import CONTROLS
from dccl_flower.simulations.reports import cell

# The names of the rows: of the control alone, and of what a device holds.
ROWS = {
    "mimic": ("mimic", "co + mimic"),
    "cloud_submodel": ("cloud submodel", "co + cloud"),
    "none": ("no control", "co alone"),
}
# Heading, key of a row, unit.
COLUMNS = (
    ("parameters", "parameters", ""),
    ("check-\npoint", "state_bytes", "B"),
    ("sent", "exchanged_bytes", "B"),
    ("forward\nMACs", "forward_macs", ""),
    ("training\nFLOPs", "training_flops", ""),
    ("saved", "activation_bytes", "B"),
    ("training\nmemory", "training_memory", "B"),
)
CAPTION = (
    "sent: as fp32, each way and round. MACs, FLOPs and saved: for one image, two FLOPs a MAC; "
    "norms and activations are not counted; saved is what the backward pass needs. training "
    "memory: an estimate for batches of {batch_size}, with gradients{buffers}. A row of one model: "
    "were it trained and sent by itself. {device}: as on a device, where only the co-submodel is "
    "trained and sent; the control is received once and scores."
)


def cost_report(conf: Conf) -> dict[str, Any]:
    """Return the counts of base model, submodels and control, and of what a device holds.

    ``costs`` and ``share_of_base`` are by row, then by quantity, in bytes, MACs and FLOPs; a share
    is null where the base model has none of the quantity. Weights are neither loaded nor drawn.
    Raises ConfError where the data or a model is impossible.
    """
    conf = with_submodels(conf)
    shape, classes = shape_of(conf)
    costs = _costs(conf, shape, classes)
    control, device = ROWS[conf.control]
    batch_size, momentum = conf.rounds.device_batch_size, conf.rounds.momentum > 0

    def counts(cost: Cost, trained: Cost, beside: Cost) -> dict[str, int]:
        memory = training_memory(trained, beside, batch_size, int(momentum))
        return {**asdict(cost), "training_memory": memory}

    rows = {name: counts(cost, cost, Cost()) for name, cost in costs.items()}
    # A device holds both and trains the co-submodel alone.
    co, beside = costs["co-submodel"], costs[control]
    held = replace(
        co,
        parameters=co.parameters + beside.parameters,
        state_bytes=co.state_bytes + beside.state_bytes,
        forward_macs=co.forward_macs + beside.forward_macs,
        training_flops=turn_flops(co, beside, 1),
        layer_bytes=max(co.layer_bytes, beside.layer_bytes),
    )
    rows[device] = counts(held, co, beside)
    return {
        "conf": conf.name,
        "image": list(shape),
        "classes": classes,
        "batch_size": batch_size,
        "momentum": momentum,
        "device": device,
        "costs": rows,
        "share_of_base": {name: _shares(row, rows["base"]) for name, row in rows.items()},
    }


def cost_table(report: dict[str, Any]) -> Table:
    """Return the report as a table, at its end the device's share of the base model."""
    shape = " x ".join(map(str, report["image"]))
    buffers = " and momentum" if report["momentum"] else ""
    table = Table(
        title=f"{report['conf']}, images of {shape}, {report['classes']} classes",
        caption=CAPTION.format(buffers=buffers, **report),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("model")
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right")
    for name, row in report["costs"].items():
        table.add_row(name, *(_short(row[key], unit) for _, key, unit in COLUMNS))
    table.add_section()
    shares = report["share_of_base"][report["device"]]
    table.add_row("  share of base", *(cell(shares[key], ".1%") for _, key, _ in COLUMNS))
    return table


def _costs(conf: SubmodelsConf, shape: tuple[int, int, int], num_classes: int) -> dict[str, Cost]:
    example = torch.zeros(1, *shape)

    def count(parts: Parts) -> dict[str, Cost]:
        models = {
            "base": ("base", parts.base),
            "cloud submodel": ("cloud", parts.cloud),
            "co-submodel": ("co", parts.co),
            ROWS[conf.control][0]: (conf.control, CONTROLS[conf.control](parts)),
        }
        costs = {}
        for row, (part, model) in models.items():
            with parts.blaming(parts.key(part)):
                costs[row] = model_cost(model, example)
        return costs

    return build_without_data(conf, shape, num_classes, count)


def _shares(row: dict[str, int], base: dict[str, int]) -> dict[str, float | None]:
    return {key: value / base[key] if base[key] else None for key, value in row.items()}


def _short(value: int, unit: str) -> str:
    size, step = pick_unit_and_suffix(value, ["", "k", "M", "G", "T", "P"], 1000)
    return f"{value / size:.3g} {step}{unit}".rstrip()
