"""Models and data of this project; nothing here knows of DC-CCL."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLOUD_CLASSES, DEVICE_CLASSES = list(range(8)), [8, 9]
TEST_SAMPLES = 400
NUM_MIXED_IN = 40


def perceptron(width: int) -> nn.Module:
    """A large one for the cloud, a small one for the devices."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 8, 8) in 0..1 and labels (N,)."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)


def loader(chosen: torch.Tensor, batch_size: int = 20) -> DataLoader:
    """Shuffled batches of the chosen samples."""
    images, labels = digits()
    return DataLoader(TensorDataset(images[chosen], labels[chosen]), batch_size, shuffle=True)


def rows_of(classes: list[int]) -> torch.Tensor:
    """Training samples of some classes; the last ones of the data set are for testing."""
    _, labels = digits()
    return torch.nonzero(torch.isin(labels[:-TEST_SAMPLES], torch.tensor(classes))).flatten()


def cloud_loader() -> DataLoader:
    """What the cloud holds: the cloud classes but for the few samples that devices have."""
    return loader(rows_of(CLOUD_CLASSES)[NUM_MIXED_IN:], batch_size=100)


def device_loader(device: int, num_devices: int) -> DataLoader:
    """What one device holds: its share of the device classes and of a few cloud-class samples."""
    held = torch.cat([rows_of(DEVICE_CLASSES), rows_of(CLOUD_CLASSES)[:NUM_MIXED_IN]])
    return loader(held[device::num_devices])


def test_loader() -> DataLoader:
    """The test set."""
    images, labels = digits()
    return DataLoader(TensorDataset(images[-TEST_SAMPLES:], labels[-TEST_SAMPLES:]), 100)


def store_folder(run_id: int) -> Path:
    """Where the devices of a run keep what the server sends once."""
    return Path(tempfile.gettempdir()) / f"own-dc-ccl-{run_id}"
