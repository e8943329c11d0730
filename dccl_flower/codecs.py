"""What a state looks like on the wire: a few flat vectors in full, half or eight-bit precision.

One vector a kind of number, never one array a tensor: a message's cost grows with its arrays.
States are of float32, and so is all that is decoded. ``fp32`` is exact to the bit, and so is
``named``, which pays for an array a tensor so that Flower's own tools find each by its name.
``fp16`` rounds to half precision; finite values beyond its range become the largest it has, 65504.
``int8`` sends each tensor of two or more dimensions as whole numbers in -127..127 times a scale of
its own, max|w| / 127, and all others (biases, norms' weights and statistics) exactly: they are few
and their ranges differ. Up it sends how far the tensors moved, and the device adds what rounding
lost to its next update.

Such error feedback is from Seide, Fu, Droppo, Li and Yu, "1-Bit Stochastic Gradient Descent and
its Application to Data-Parallel Distributed Training of Speech DNNs", Interspeech 2014;
Karimireddy, Rebjock, Stich and Jaggi show that it keeps the rate of plain SGD, arXiv 1901.09847.

Values that are not finite stay so in ``fp32`` and ``fp16`` and in every update, so that whoever
reads a device's update finds them as it finds all others, and knows whose they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]
Vectors = list[np.ndarray]
Layout = Sequence[tuple[str, tuple[int, ...]]]
LARGEST_CODE = 127
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Codec:
    """One flat vector of floats.

    ``sends_changes``: what goes up is how far a state moved, not where it came to.
    """

    name: str
    dtype: str = "float32"
    sends_changes: bool = False

    @property
    def is_exact(self) -> bool:
        """Tell whether what is decoded is what was encoded, to the bit."""
        return self.dtype in ("float32", "float64")

    def keys(self, state: Mapping[str, Tensor]) -> list[str]:
        """Return what the arrays are called in a record."""
        return [str(place) for place in range(len(self.layout(state)))]

    def layout(self, like: Mapping[str, Tensor]) -> Layout:
        """Return dtype and shape of each array that :meth:`encode` makes of such a state."""
        return [(self.dtype, (sum(_sizes(like)),))]

    def num_bytes(self, like: Mapping[str, Tensor]) -> int:
        """Return how many bytes the numbers of such a state take."""
        return sum(np.dtype(dtype).itemsize * math.prod(s) for dtype, s in self.layout(like))

    def encode(self, state: State) -> Vectors:
        """Return a state as arrays.

        int8 raises ValueError where a tensor of two or more dimensions holds a value that is not
        finite, or so large that its scale is not safe to multiply.
        """
        if self.is_exact:
            return [_flat(state.values(), getattr(torch, self.dtype)).numpy()]
        return [_saturated(_flat(state.values())).half().numpy()]

    def decode(self, arrays: Sequence[np.ndarray], like: Mapping[str, Tensor]) -> State:
        """Return the state that :meth:`encode` encoded, with the names and shapes of ``like``.

        Its tensors are views of one copy of each array. Raises ValueError where number, dtype or
        shape of the arrays does not fit, or a scale is negative or not finite.
        """
        (vector,) = _read(self.name, arrays, self.layout(like))
        return _views(vector if self.is_exact else vector.float(), like)

    def encode_update(
        self, trained: State, received: State, residual: State
    ) -> tuple[Vectors, State]:
        """Return what a device sends up, and what rounding lost, to be given with its next update.

        Floats send the trained state itself and lose nothing worth keeping: {}. int8 sends the
        change since ``received`` plus ``residual``, which is {} at first; a scale says where a
        change is not finite, and nothing of it is kept. Raises ValueError for a residual of
        another model.
        """
        return self.encode(trained), {}

    def apply_update(self, arrays: Sequence[np.ndarray], base: State) -> State:
        """Return the trained state as the server reads it from a device's update.

        For int8 ``base`` may be more precise than what the device received: the change is added to
        it. What the codec sends exactly arrives exactly. The state may hold values that are not
        finite. Raises ValueError where number, dtype or shape of the arrays does not fit.
        """
        return self.decode(arrays, base)


class Named(Codec):
    """One array a tensor, under the tensor's name."""

    def keys(self, state: Mapping[str, Tensor]) -> list[str]:
        return list(state)

    def layout(self, like: Mapping[str, Tensor]) -> Layout:
        return [(self.dtype, tuple(tensor.shape)) for tensor in like.values()]

    def encode(self, state: State) -> Vectors:
        return [tensor.detach().float().cpu().numpy().copy() for tensor in state.values()]

    def decode(self, arrays: Sequence[np.ndarray], like: Mapping[str, Tensor]) -> State:
        return dict(zip(like, _read(self.name, arrays, self.layout(like)), strict=True))


class EightBits(Codec):
    """Codes, their scales, and the exact rest."""

    def layout(self, like: Mapping[str, Tensor]) -> Layout:
        matrices, others = _parted(like)
        codes, rest = ((sum(_sizes(part)),) for part in (matrices, others))
        return [("int8", codes), ("float32", (len(matrices),)), ("float32", rest)]

    def encode(self, state: State) -> Vectors:
        matrices, rest = _parted(state)
        codes, scales = _quantised(_flat(matrices.values()), _sizes(matrices))
        _check_scales(matrices, scales)
        return [codes.numpy(), scales.numpy(), _flat(rest.values()).numpy()]

    def decode(self, arrays: Sequence[np.ndarray], like: Mapping[str, Tensor]) -> State:
        flat, scales, rest = self._read(arrays, like)
        _check_scales(_parted(like)[0], scales)
        return _joined(flat, rest, like)

    def encode_update(
        self, trained: State, received: State, residual: State
    ) -> tuple[Vectors, State]:
        matrices, rest = _parted(trained)
        change = _flat(matrices.values()) - _flat(received[name] for name in matrices)
        if residual:
            if _shapes(residual) != _shapes(matrices):
                raise ValueError("int8: the residual kept is of another model")
            change += _flat(residual[name] for name in matrices)
        codes, scales = _quantised(change, _sizes(matrices))
        lost = change - _restored(codes, scales, _sizes(matrices))
        arrays = [codes.numpy(), scales.numpy(), _flat(rest.values()).numpy()]
        return arrays, _views(lost.nan_to_num(0.0, 0.0, 0.0), matrices)

    def apply_update(self, arrays: Sequence[np.ndarray], base: State) -> State:
        change, _, rest = self._read(arrays, base)
        return _joined(_flat(_parted(base)[0].values()) + change, rest, base)

    def _read(
        self, arrays: Sequence[np.ndarray], like: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tensors of two or more dimensions in one vector, their scales, the rest."""
        codes, scales, rest = _read(self.name, arrays, self.layout(like))
        return _restored(codes, scales, _sizes(_parted(like)[0])), scales, rest


FP32 = Codec("fp32")
FP16 = Codec("fp16", "float16")
INT8 = EightBits("int8", "int8", sends_changes=True)
CODECS: dict[str, Codec] = {each.name: each for each in (FP32, FP16, INT8, Named("named"))}
# For sums that are not finished yet, which stay in double precision.
FP64 = Codec("float64", "float64")


def encoded_bytes(arrays: Iterable[np.ndarray]) -> int:
    """Return the bytes of the arrays' numbers, without what a message adds around them."""
    return sum(array.nbytes for array in arrays)


def _check_scales(matrices: Mapping[str, Tensor], scales: Tensor) -> None:
    # 128 is the largest code that an array of int8 can hold.
    for name, scale, largest in zip(
        matrices, scales.tolist(), (scales * 128).tolist(), strict=True
    ):
        if not (scale >= 0 and math.isfinite(largest)):
            raise ValueError(f"int8: the scale of {name!r} is {scale}, expected finite and >= 0")


def _parted(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """Return the tensors that int8 quantises and those that it sends as they are."""
    matrices = {name: tensor for name, tensor in state.items() if tensor.dim() >= 2}
    rest = {name: tensor for name, tensor in state.items() if tensor.dim() < 2}
    return matrices, rest


def _sizes(state: Mapping[str, Tensor]) -> list[int]:
    return [tensor.numel() for tensor in state.values()]


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _flat(tensors: Iterable[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values of the tensors as one new vector on the CPU."""
    parts = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat(parts).detach().to(dtype).cpu() if parts else torch.empty(0, dtype=dtype)


def _views(vector: Tensor, like: Mapping[str, Tensor]) -> State:
    parts = vector.split(_sizes(like))
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}


def _joined(flat: Tensor, rest: Tensor, like: Mapping[str, Tensor]) -> State:
    matrices, others = _parted(like)
    views = {**_views(flat, matrices), **_views(rest, others)}
    return {name: views[name] for name in like}


def _saturated(vector: Tensor) -> Tensor:
    within = vector.clamp(-LARGEST_HALF, LARGEST_HALF)
    return torch.where(vector.abs() == math.inf, vector, within)


def _quantised(flat: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return the int8 codes and the scale of each piece; a scale tells what is not finite."""
    largest = [float(piece.abs().amax()) for piece in flat.split(sizes)]
    scales = torch.tensor(largest, dtype=torch.float32) / LARGEST_CODE
    divisors = torch.where(scales > 0, scales, 1.0)
    codes = (flat / _spread(divisors, sizes)).round_().nan_to_num_(0.0)
    # Next to the smallest float a scale has few digits, and the quotient can pass 127.
    return codes.clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.int8), scales


def _restored(codes: Tensor, scales: Tensor, sizes: list[int]) -> Tensor:
    return codes.float() * _spread(scales, sizes)


def _spread(scales: Tensor, sizes: list[int]) -> Tensor:
    # Faster than torch.repeat_interleave on a few long pieces.
    return torch.from_numpy(np.repeat(scales.numpy(), sizes))


def _read(codec: str, arrays: Sequence[np.ndarray], expected: Layout) -> list[Tensor]:
    """Return copies of the arrays as tensors, if each is of its dtype and shape."""
    if len(arrays) != len(expected):
        raise ValueError(f"{codec}: got {len(arrays)} arrays, expected {len(expected)}")
    for array, (dtype, shape) in zip(arrays, expected, strict=True):
        if array.dtype != dtype or array.shape != shape:
            found, wanted = f"{array.dtype} {array.shape}", f"{dtype} {shape}"
            raise ValueError(f"{codec}: got an array of {found}, expected {wanted}")
    return [torch.from_numpy(np.array(array)) for array in arrays]
