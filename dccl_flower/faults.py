"""What cannot count as an answer: of which kind it is, and the line that names whose it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# By these words faults are counted.
KINDS = {
    "raised": "the device failed",
    "silent": "no answer came in time",
    "late": "the turn took longer than the round waits",
    "lost": "the device no longer holds what it was sent",
    "blob": "what the device was sent arrived damaged",
    "damaged": "what the device keeps is damaged",
    "nameless": "the reply names no device",
    "stranger": "the reply is not of the device that was asked",
    "twice": "the device has answered already",
    "stale": "the reply is of another round",
    "samples": "the number of samples is not plausible",
    "unfit": "arrays or metrics are missing, too many, or of another dtype or shape",
    "not_finite": "a value is not finite",
    "overflow": "a value is so large that what is computed with it overflows",
    "norm": "the update is longer than rounds.max_norm",
}
# Its square is still a float32; beyond, a later turn overflows on other devices, which would then
# seem to be at fault.
LARGEST = 1e18
MOST_SAMPLES = 2**31 - 1


class BadAnswer(ValueError):
    """An answer that cannot count; its text is one line that names the device."""

    def __init__(self, kind: str, line: str) -> None:
        super().__init__(kind, line)
        self.kind = kind
        self.line = line

    def __str__(self) -> str:
        return self.line


@dataclass(frozen=True)
class Fault:
    """Why devices gave no good answer, in one line; none are named where it cannot be known."""

    kind: str
    line: str
    devices: Sequence[int] = ()
    cause: Exception | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.line}"


def fault_of(error: Exception, device: int) -> Fault:
    """Return what a device's turn raised as a fault."""
    if isinstance(error, BadAnswer):
        return Fault(error.kind, error.line, [device], cause=error)
    return Fault("raised", f"device {device}: {in_words(error)}", [device], cause=error)


def in_words(error: Exception) -> str:
    """Return an error as one line: its type, and its text where it has any."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'no message'}"


def named(devices: Sequence[int], most: int = 20) -> str:
    """Return devices as a line has them."""
    if len(devices) == 1:
        return f"device {devices[0]}"
    more = f" and {len(devices) - most} more" if len(devices) > most else ""
    return f"devices {', '.join(map(str, devices[:most]))}{more}"


def check_values(state: Mapping[str, Tensor], who: str) -> None:
    """Raise BadAnswer, saying ``who``, where a value is not finite or too large to go on with."""
    for name, tensor in state.items():
        if not tensor.numel():
            continue
        low, high = (float(end) for end in torch.aminmax(tensor.detach()))
        if low >= -LARGEST and high <= LARGEST:  # never true of nan
            continue
        if math.isfinite(low) and math.isfinite(high):
            largest = max(-low, high)
            line = f"{who} replied with {largest:.3g} in {name!r}: more than {LARGEST:g} overflows"
            raise BadAnswer("overflow", line)
        raise BadAnswer("not_finite", f"{who} replied with a value in {name!r} that is not finite")


def check_norm(
    state: Mapping[str, Tensor], base: Mapping[str, Tensor], most: float, who: str
) -> None:
    """Raise BadAnswer, saying ``who``, where the L2 norm of ``state - base`` is above ``most``.

    What ``base`` does not hold counts as zero there.
    """
    total = 0.0
    for name, tensor in state.items():
        moved = tensor.double() - base[name].double() if name in base else tensor.double()
        total += float(moved.square().sum())
    norm = math.sqrt(total)
    if not norm <= most:
        raise BadAnswer(
            "norm", f"{who} replied with an update of norm {norm:.4g}: rounds.max_norm={most:g}"
        )


def check_count(value: Any, who: str) -> int:
    """Return a number of samples. Raises BadAnswer, saying ``who``, for what cannot be one."""
    if type(value) is not int or not 1 <= value <= MOST_SAMPLES:
        allowed = f"a whole number from 1 to {MOST_SAMPLES}"
        line = f"{who} replied with num-examples={value}: must be {allowed}"
        raise BadAnswer("samples", line)
    return value
