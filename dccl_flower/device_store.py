"""What devices keep between rounds: files named by their content's SHA-256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load as load_safetensors
from torch import Tensor

from dccl_flower.checkpoint import to_bytes
from dccl_flower.files import write_aside

LACKS = "does not hold blob"


def sha256(blob: bytes) -> str:
    """Return the hexadecimal SHA-256 of a blob."""
    return hashlib.sha256(blob).hexdigest()


@dataclass(frozen=True)
class Parcel:
    """Tensors that a device is sent once and finds again by the hash of their bytes."""

    digest: str
    blob: Callable[[], bytes]

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> Parcel:
        """Pack tensors."""
        blob = to_bytes(state)
        return cls(sha256(blob), lambda: blob)

    def state(self) -> dict[str, Tensor]:
        """Unpack them."""
        return load_safetensors(self.blob())


class DeviceStore:
    """A folder of blobs, and for each device a marker a blob that it has received.

    In a simulation the workers of a machine share the folder, so a blob lies there once however
    many devices hold it; in a deployment each device has its own.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)

    def holds(self, device: int, digest: str) -> bool:
        """Tell whether the device has received the blob and it still lies there undamaged."""
        return self._marker(device, digest).exists() and self._is_intact(digest)

    def put(self, device: int, digest: str, blob: bytes) -> None:
        """Keep a blob for a device. Raises ValueError where the content is not the digest's."""
        if sha256(blob) != digest:
            raise ValueError(f"device {device} received a blob whose SHA-256 is not {digest}")
        if not self._is_intact(digest):  # else another device of this machine has brought it
            write_aside(self._blob(digest), blob)
        marker = self._marker(device, digest)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()

    def get(self, device: int, digest: str) -> bytes:
        """Return a blob the device holds. Raises ValueError where it is missing or damaged."""
        if not self.holds(device, digest):
            raise ValueError(f"device {device} {LACKS} {digest}")
        return self._blob(digest).read_bytes()

    def own(self, device: int) -> Path:
        """Return the folder of what a device keeps that it was not sent."""
        return self._folder / "own" / str(device)

    def _is_intact(self, digest: str) -> bool:
        path = self._blob(digest)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return False
        return _has_digest(path, digest, stat.st_mtime_ns, stat.st_size)

    def _blob(self, digest: str) -> Path:
        return self._folder / "blobs" / f"{digest}.safetensors"

    def _marker(self, device: int, digest: str) -> Path:
        return self._folder / "devices" / str(device) / digest


@lru_cache(maxsize=64)
def _has_digest(path: Path, digest: str, mtime_ns: int, size: int) -> bool:
    """Hash a file, once as long as its time and size stay the same."""
    return sha256(path.read_bytes()) == digest
