"""A federation that fits in a millisecond: two features, three classes, plain DataLoaders."""

from __future__ import annotations

import torch
from local_grid import LocalGrid
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower import Cloud, DcCclClient, numpy_client_app
from dccl_flower.codecs import CODECS
from dccl_flower.flower.wire import to_state
from dccl_flower.image_config import DistilConf, PretrainConf
from dccl_flower.image_config import TwoSidedRoundsConf as RoundsConf
from dccl_flower.learning.head_tuning import HeadPrivacy
from dccl_flower.models.control import NoControl
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.seeds import isolated_rng, torch_generator
from dccl_flower.strategies import DcCcl

CENTRES = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]])


def tiny_model(seed, norm="batch", width=6):
    """Two linear layers with a norm between them."""
    with isolated_rng(seed, "tiny"):
        norm_layer = nn.BatchNorm1d(width) if norm == "batch" else nn.GroupNorm(2, width)
        return nn.Sequential(nn.Linear(2, width), norm_layer, nn.ReLU(), nn.Linear(width, 3))


def tiny_samples(classes, count, seed):
    """Points around the centres of the given classes."""
    generator = torch_generator(seed, "samples")
    labels = torch.tensor(classes).repeat(count // len(classes) + 1)[:count]
    return CENTRES[labels] + 0.3 * torch.randn(count, 2, generator=generator), labels


def tiny_loader(classes, count, seed, batch_size=8, shuffle=True):
    return DataLoader(TensorDataset(*tiny_samples(classes, count, seed)), batch_size, shuffle)


def device_loader(device):
    """Devices hold class 2 and a little of class 0; sizes differ."""
    return tiny_loader([2, 2, 0], 12 + 3 * device, seed=100 + device, batch_size=4)


def tiny_cloud(norm="batch", on_progress=lambda *_: None, **options):
    options.setdefault("pretrain", PretrainConf(epochs=2, lr=0.05))
    options.setdefault("distil", DistilConf(epochs=2, lr=0.01))
    return Cloud(
        tiny_model(1, width=16),
        tiny_model(2),
        tiny_model(3, norm),
        tiny_loader([0, 1], 40, seed=5),
        on_progress=on_progress,
        **options,
    )


def tiny_control(control, norm="batch"):
    """What a device builds for the control of that name, without the cloud's weights."""
    if control == "none":
        return NoControl(tiny_model(4, norm))
    return tiny_model(5, width=16 if control == "cloud_submodel" else 6)


def mixed_loader(device):
    """Devices differ in their classes as well as in their sizes."""
    classes = [[2, 2, 0], [1, 2], [0, 1, 1, 1], [2]][device % 4]
    return tiny_loader(classes, 12 + 3 * device, seed=100 + device, batch_size=4)


def tiny_app(store, norm="batch", train_mods=(), control="mimic", load_data=device_loader):
    def client_fn(context):
        own = tiny_control(control, norm)
        anyone = HeadPrivacy(floor=1)
        return DcCclClient(tiny_model(4, norm), own, load_data, store, head_privacy=anyone)

    return numpy_client_app(client_fn, train_mods)


def tiny_strategy(num_devices=5, norm="batch", cloud=None, **options):
    options.setdefault("rounds", RoundsConf(count=3, local_steps=4, lr=0.05))
    return DcCcl(cloud or tiny_cloud(norm), num_devices=num_devices, **options)


def tiny_state(arrays, norm="batch", codec="fp32"):
    """Return the co-submodel's state that a record of a tiny federation stands for."""
    return to_state(arrays, exchanged_state(tiny_model(3, norm)), CODECS[codec])


def replied_devices(strategy):
    """Return the ids of the devices that answered in the last round, in the order recorded."""
    return [device for reply in strategy.replies for device in reply.devices]


def run_tiny(
    store, num_nodes=5, num_rounds=3, norm="batch", control="mimic", evaluate_fn=None, **options
):
    """Run a strategy on a local grid; return strategy, grid and Flower's result."""
    grid = LocalGrid(tiny_app(store, norm, control=control), num_nodes)
    cloud = options.pop("cloud", None) or tiny_cloud(norm, control=control)
    strategy = tiny_strategy(norm=norm, cloud=cloud, **options)
    start = strategy.initial_arrays()
    result = strategy.start(grid, start, num_rounds=num_rounds, evaluate_fn=evaluate_fn)
    return strategy, grid, result
