"""Whole small runs with all their traffic kept, and what of it ought not to be there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from local_grid import LocalGrid

from dccl_flower.data.loader import normalise
from dccl_flower.flower.device_app import DeviceClient
from dccl_flower.flower.numpy_client_app import numpy_client_app
from dccl_flower.interaction_experiment import InteractionExperiment
from dccl_flower.method import find_method
from dccl_flower.simulations.app.server_app import make_strategy

PIXELS = 16  # how many in a row are a leak
LABELS = 16
ITEMS = 4
WEIGHTS = 8
NUMBERS = ("u1", "i4", "i8", "f2", "f4", "f8")
CODES = NUMBERS[1:]  # a few single bytes in a row are anywhere
FLOATS = ("f2", "f4", "f8")
# Numbers that every reply may hold.
COUNTS = {"num-examples", "num-examples-each", "device", "devices", "server-round"}
COUNTS |= {"peak-rss-mb", "renewed"}
METRICS = {"loss", "accuracy"}


@dataclass
class Traffic:
    """What went over the wire: all messages, and the ledger's bytes by kind."""

    down: list
    up: list
    totals: dict
    told: set = field(default_factory=set)


def watched_run(experiment, store, nodes=None, half=None, server=None):
    """Run all rounds on a local grid; return the server's half and the traffic.

    ``half`` and ``server`` wrap the method's halves.
    """
    conf, kind = experiment.conf, find_method(experiment.conf.method.name)
    method = kind.server(experiment, lambda *_: None)
    device = kind.device(experiment)
    strategy = make_strategy(conf, method if server is None else server(method))
    client = DeviceClient(device if half is None else half(device), experiment.device_loader, store)
    grid = LocalGrid(numpy_client_app(lambda context: client), nodes or conf.devices.count)
    strategy.start(grid, strategy.initial_arrays(), num_rounds=conf.rounds.count)
    down, up = ([m.content for m in side] for side in (grid.sent, grid.received))
    told = {name for content in up for record in content.metric_records.values() for name in record}
    return method, Traffic(down, up, dict(strategy.ledger.totals), told)


def findings(experiment, method, traffic):
    """Return what a run sent that it should not have, in words."""
    kinds = find_method(experiment.conf.method.name).kinds(experiment)
    found = undeclared(kinds, traffic)
    up = [piece for content in traffic.up for piece in pieces(content)]
    if isinstance(experiment, InteractionExperiment):
        found += found_in(up, interactions(experiment), "an interaction row")
    else:
        found += found_in(up, pixels(experiment), "pixels")
        found += found_in(up, labels(experiment), "labels")
    if cloud := getattr(method, "cloud", None):
        down = [piece for content in traffic.down for piece in pieces(content)]
        found += found_in(down, weights(cloud), "cloud submodel")
    return found


def undeclared(kinds, traffic):
    """Return the names that no method declared."""
    allowed = {f"{name}_down" for name in kinds.down} | {f"{name}_up" for name in kinds.up}
    odd = traffic.totals.keys() - allowed - {"other_down", "other_up"}
    told = traffic.told - {*kinds.told, *COUNTS, *METRICS, "partition-id", "num-partitions"}
    return [f"undeclared {name}" for name in sorted(odd | told)]


def pieces(content):
    """Yield the bytes of all that a message holds."""
    for record in content.array_records.values():
        yield from (array.data for array in record.values())
    for record in (*content.config_records.values(), *content.metric_records.values()):
        for value in record.values():
            if isinstance(value, bytes):
                yield value
            elif isinstance(value, list) and value and not isinstance(value[0], str | bytes):
                yield np.asarray(value).tobytes()


def found_in(hay, needles, what):
    """Return what is found of sets of bytes, by how long these are."""
    for size, wanted in needles.items():
        for piece in hay:
            if any(piece[at : at + size] in wanted for at in range(len(piece) - size + 1)):
                return [what]
    return []


def runs(vectors, length, dtypes, distinct):
    """Return all runs of so many values in a row, as bytes of each type, by their size.

    Those of few ``distinct`` values are left out: they are everywhere.
    """
    found = {}
    for vector in vectors:
        flat = np.ascontiguousarray(vector).reshape(-1)
        if len(flat) < length:
            continue
        rows = np.lib.stride_tricks.sliding_window_view(flat, length)
        ordered = np.sort(rows, axis=1)
        telling = rows[(ordered[:, 1:] != ordered[:, :-1]).sum(1) + 1 >= distinct]
        for dtype in dtypes:
            written = telling.astype(dtype)
            wanted = found.setdefault(written.itemsize * length, set())
            wanted.update(row.tobytes() for row in written)
    return found


def pixels(experiment):
    """Return runs of pixels of all devices' images: raw, from 0 to 1, and normalised."""
    raw, shown = [], []
    for device in range(experiment.conf.devices.count):
        loader = experiment.device_loader(device)
        taken = loader.taken(torch.arange(loader.num_samples))
        raw += [taken["images"].numpy()]
        shown += [normalise(*(taken[n].numpy() for n in ("images", "mean", "std"))).numpy()]
        shown += [(raw[-1] / 255).astype("f4")]
    found = runs([i for each in raw for i in each], PIXELS, NUMBERS, 6)
    for size, more in runs([i for each in shown for i in each], PIXELS, FLOATS, 6).items():
        found.setdefault(size, set()).update(more)
    return found


def labels(experiment):
    """Return runs of labels as devices hold them."""
    count = experiment.conf.devices.count
    held = [experiment.device_loader(device).targets.numpy() for device in range(count)]
    return runs(held, LABELS, NUMBERS, 2)


def interactions(experiment):
    """Return runs of items, of labels, and histories of what devices hold."""
    found = {}
    for device in range(experiment.conf.devices.count):
        own = experiment.device_loader(device).own
        _add(found, runs([own["item"].numpy()], ITEMS, CODES, 4))
        _add(found, runs([own["label"].numpy()], LABELS, NUMBERS, 2))
        _add(found, runs(own["history"].numpy(), own["history"].shape[1], CODES, 3))
    return found


def weights(cloud):
    """Return runs of the cloud submodel's weights, but for a stem that it shares."""
    shared = cloud.control_states().get("cloud_stem", {}).values()
    own = [t for t in cloud.cloud_submodel.state_dict().values() if t.is_floating_point()]
    own = [t for t in own if not any(torch.equal(t, s) for s in shared)]
    return runs([t.numpy() for t in own], WEIGHTS, FLOATS, 4)


def _add(found, more):
    for size, wanted in more.items():
        found.setdefault(size, set()).update(wanted)
