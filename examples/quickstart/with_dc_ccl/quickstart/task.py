"""A model, the data, and how to train and test."""

from functools import cache

import torch
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from dccl_flower import vertical_split

ON_DEVICES = [8, 9]
NUM_TEST = 400


class Net(nn.Module):
    """A small CNN for images of 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(64 * 2 * 2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) to logits (N, 10)."""
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc(x.flatten(1))


def halves() -> tuple[nn.Module, nn.Module]:
    """Return the part of the model that stays on the cloud and the part for devices."""
    return vertical_split(Net(), torch.zeros(2, 1, 8, 8), co_ratio=1 / 4)


@cache
def digits() -> Dataset:
    """Return scikit-learn's digits, shuffled, as a data set of dicts."""
    data = load_digits()
    rows = Dataset.from_dict({"image": data.images[:, None] / 16, "label": data.target})
    return rows.shuffle(seed=0).with_format("torch")


def of_devices(is_on_devices: bool) -> Dataset:
    """Return the training images of the devices' classes and a few more, or all others."""
    rows = digits().select(range(NUM_TEST, len(digits())))
    held = torch.isin(rows[:]["label"], torch.tensor(ON_DEVICES))
    held[::20] = True
    chosen = held == is_on_devices
    return rows.select(chosen.nonzero().flatten().tolist())


def load_data(device: int, num_devices: int) -> DataLoader:
    """Return the batches of one device."""
    partitioner = IidPartitioner(num_devices)
    partitioner.dataset = of_devices(True)
    return DataLoader(partitioner.load_partition(device), batch_size=16, shuffle=True)


def load_test() -> DataLoader:
    """Return the batches of the test set."""
    return DataLoader(digits().select(range(NUM_TEST)), batch_size=100)
