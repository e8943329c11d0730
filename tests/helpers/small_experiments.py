"""Experiments on the bundled digits that are ready in a second, and both halves of their method."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from dccl_flower.config_loading import load_conf
from dccl_flower.device import Device, Memory
from dccl_flower.device_store import DeviceStore
from dccl_flower.method import Answer, find_method
from dccl_flower.simulations.experiment import open_experiment

SMALL = (
    "devices.count=3",
    "rounds.count=2",
    "rounds.local_steps=2",
    "rounds.lr=0.1",
    "rounds.lr_schedule=constant",
)
PREPARED = ("pretrain.epochs=1", "distil.epochs=1")  # keys of methods that prepare a cloud

TIER = {"share": 1, "flops": 1e9, "memory_mb": 1000, "down_mbps": 10, "up_mbps": 10}
TIER |= {"availability": 1, "drop_out": 0}


def profiles(folder, *tiers):
    """Write profiles of tiers, each by what it changes; return the override."""
    path = folder / "tiers.yaml"
    named = [{"name": str(place), **TIER, **changes} for place, changes in enumerate(tiers)]
    path.write_text(json.dumps({"tiers": named}))
    return f"devices.profiles={path}"


def two_widths(folder):
    """Write profiles of which half the devices train half the width; return the override."""
    return profiles(folder, {}, {"co_share": 0.5})


def small_experiment(*overrides):
    is_prepared = not {"method.name=fedavg", "method.name=heterofl"}.intersection(overrides)
    changes = [*SMALL, *(PREPARED if is_prepared else ()), *overrides]
    return open_experiment(load_conf("digits", changes))


def halves(experiment):
    """Return the server's half, prepared, and the devices'."""
    kind = find_method(experiment.conf.method.name)
    server = kind.server(experiment, lambda *_: None)
    server.plan(experiment.conf.rounds.count)
    server.prepare()
    return server, kind.device(experiment)


def device_of(experiment, number, store, turn=(1, 0)):
    memory = Memory(DeviceStore(store), number, "run-of-the-tests", turn)
    seed = experiment.conf.seed
    return Device(number, turn[0], seed, experiment.device_loader, memory)


def filled(state, value):
    """Return a state of the same shapes, filled with one value."""
    return {name: torch.full_like(tensor, value) for name, tensor in state.items()}


def answered(asks, values, counts):
    """Return hand-made answers: each device's copy is filled with its value."""
    return {
        device: Answer(device, filled(ask.like or ask.state, values[device]), counts[device])
        for device, ask in asks.items()
    }


def end_of(exchange, answers):
    """Hand over the last answers and return the state that the round ends with."""
    try:
        exchange.send(answers)
    except StopIteration as end:
        return end.value
    raise AssertionError("the round asks once more")


def with_recipe(ask, **changes):
    """Return an ask whose recipe differs."""
    return replace(ask, turn=replace(ask.turn, recipe=replace(ask.turn.recipe, **changes)))
