"""Between torch tensors and Flower's records; arrays and safetensors bytes, never pickles."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from dccl_flower.learning.fusion import State


def to_arrays(state: State) -> ArrayRecord:
    """Return a state as an ArrayRecord with the same keys in the same order."""
    return ArrayRecord({name: Array(_to_numpy(tensor)) for name, tensor in state.items()})


def to_state(arrays: ArrayRecord) -> State:
    """Return an ArrayRecord as a state of tensors that own their memory."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}


def check_state(state: State, like: State, who: str) -> None:
    """Raise ValueError, saying ``who``, unless names, shapes and finiteness are as they must be."""
    if list(state) != list(like):
        raise ValueError(f"{who} replied with other arrays than it was sent")
    for name, tensor in state.items():
        if tensor.shape != like[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(like[name].shape)}"
            raise ValueError(f"{who} replied with {name!r} of shape {shapes}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{who} replied with a value in {name!r} that is not finite")


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
