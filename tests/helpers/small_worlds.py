"""Experiments in a made-up world of a few users, ready in a second."""

from __future__ import annotations

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.experiment import open_experiment

SMALL = (
    "data.world.users=60",
    "data.world.items=40",
    "devices.count=6",
    "model.embedding=4",
    "model.hidden=[8,4]",
    "pretrain.epochs=1",
    "device.epochs=2",
    "rounds.count=2",
)


def small_world(name, *overrides):
    """Open the experiment of a configuration, as small as it can be."""
    return open_experiment(load_conf(name, [*SMALL, *overrides]))
