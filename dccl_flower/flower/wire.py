"""Between torch tensors and Flower's records; arrays and safetensors bytes, never pickles.

What comes from outside is looked at before memory is set aside for it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from flwr.app import Array, ArrayRecord
from torch import Tensor

from dccl_flower.codecs import FP32, Codec, State

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def to_arrays(state: State, codec: Codec = FP32) -> ArrayRecord:
    """Return a state as an ArrayRecord of the arrays that a codec makes of it."""
    return record(codec.encode(state), codec.keys(state))


def to_state(arrays: ArrayRecord, like: Mapping[str, Tensor], codec: Codec = FP32) -> State:
    """Return an ArrayRecord as a state of tensors that own their memory, named as in ``like``.

    Raises ValueError where the arrays are not what the codec makes of such a state.
    """
    return codec.decode(ndarrays(arrays), like)


def record(vectors: Sequence[np.ndarray], keys: Sequence[str] | None = None) -> ArrayRecord:
    """Return arrays as an ArrayRecord; keys are their places, as in Flower's clients, or given."""
    names = map(str, range(len(vectors))) if keys is None else keys
    return ArrayRecord({name: Array(each) for name, each in zip(names, vectors, strict=True)})


def ndarrays(arrays: ArrayRecord) -> list[np.ndarray]:
    """Return the arrays of an ArrayRecord, which share its memory and cannot be written.

    Raises ValueError for an array whose header and bytes do not agree.
    """
    return [_ndarray(name, array.data) for name, array in arrays.items()]


def _ndarray(name: str, data: bytes) -> np.ndarray:
    """Read what ``numpy.save`` wrote, without a copy."""
    file = io.BytesIO(data)
    try:
        read_header = HEADERS[np.lib.format.read_magic(file)]
        shape, is_fortran, dtype = read_header(file)
    except (KeyError, ValueError) as error:
        raise ValueError(f"array {name!r}: is not in NumPy's format") from error
    held = len(data) - file.tell()
    if dtype.hasobject or min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != held:
        raise ValueError(f"array {name!r}: says {dtype} {shape}, and holds {held} bytes")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")
