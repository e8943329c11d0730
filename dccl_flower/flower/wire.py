"""Between torch tensors and Flower's records; arrays and safetensors bytes, never pickles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from dccl_flower.codecs import decode, encode
from dccl_flower.learning.fusion import State


def to_arrays(state: State, codec: str = "fp32") -> ArrayRecord:
    """Return a state as an ArrayRecord of the few flat vectors that a codec makes of it."""
    return record(encode(codec, state))


def to_state(arrays: ArrayRecord, like: Mapping[str, Tensor], codec: str = "fp32") -> State:
    """Return an ArrayRecord as a state of tensors that own their memory, named as in ``like``.

    Raises ValueError where the arrays are not what the codec makes of such a state.
    """
    return decode(codec, ndarrays(arrays), like)


def record(vectors: Sequence[np.ndarray]) -> ArrayRecord:
    """Return vectors as an ArrayRecord with their places as keys, as Flower's own clients do."""
    return ArrayRecord({str(place): Array(vector) for place, vector in enumerate(vectors)})


def ndarrays(arrays: ArrayRecord) -> list[np.ndarray]:
    """Return the vectors of an ArrayRecord."""
    return [array.numpy() for array in arrays.values()]


def check_finite(state: State, who: str) -> None:
    """Raise ValueError, saying ``who``, where a value is not finite."""
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{who} replied with a value in {name!r} that is not finite")
