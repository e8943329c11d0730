"""Random generators keyed by what they are for, so that no draw depends on another."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch

_GLOBAL_RNG = threading.RLock()


def derive_seed(seed: int, *keys: str | int) -> int:
    """Return a 63-bit seed that depends on every key and on their order."""
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, *keys: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose, e.g. ``(seed, "device", 3, "round", 7)``."""
    return torch.Generator().manual_seed(derive_seed(seed, *keys))


def numpy_generator(seed: int, *keys: str | int) -> np.random.Generator:
    """Return the NumPy counterpart of :func:`torch_generator`."""
    return np.random.default_rng(derive_seed(seed, *keys))


@contextmanager
def isolated_rng(seed: int, *keys: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    Weight initialisation, dropout and foreign data loaders know no other generator. Threads of
    one process take turns, since they share it.
    """
    has_gpu = torch.cuda.is_available()
    with _GLOBAL_RNG, torch.random.fork_rng(None if has_gpu else ()):
        # torch.manual_seed would note a stack trace for each kind of accelerator: a millisecond.
        torch.default_generator.manual_seed(drawn := derive_seed(seed, *keys))
        if has_gpu:
            torch.cuda.manual_seed_all(drawn)
        yield


def alone() -> AbstractContextManager[object]:
    """Return a scope in which no other thread of this process is inside :func:`isolated_rng`."""
    return _GLOBAL_RNG
