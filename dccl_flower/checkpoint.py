"""Models on disk and as bytes: safetensors, never a pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from dccl_flower.files import write_aside


def save_models(folder: Path, states: dict[str, dict[str, Tensor]]) -> list[Path]:
    """Write each state to ``folder/NAME.safetensors``, aside and then renamed; return the paths.

    Raises OSError, which names the file, where it cannot be written.
    """
    paths = []
    for name, state in states.items():
        path = folder / f"{name}.safetensors"
        write_aside(path, to_bytes(state))
        paths.append(path)
    return paths


def load_models(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read back what :func:`save_models` wrote."""
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def to_bytes(state: dict[str, Tensor]) -> bytes:
    """Return a state as safetensors bytes; tensors that share memory come back one by one."""
    return save(_plain(state))


def from_bytes(blob: bytes) -> dict[str, Tensor]:
    """Return the state of safetensors bytes, which say no larger sizes than they hold.

    Raises ValueError for bytes that are anything else.
    """
    try:
        return load(blob)
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"not safetensors: {error!s:.200}") from error


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, each with memory of its own: the format knows no sharing."""
    own = torch.contiguous_format
    return {n: tensor.detach().cpu().clone(memory_format=own) for n, tensor in state.items()}
