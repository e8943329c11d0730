"""What devices keep between rounds: files named by their content's SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from dccl_flower.checkpoint import from_bytes, to_bytes
from dccl_flower.faults import BadAnswer
from dccl_flower.files import make_private, write_aside

DIGEST = re.compile("[0-9a-f]{64}")


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
        return from_bytes(self.blob())


class DeviceStore:
    """A folder of blobs, and for each device a marker a blob that it has received.

    In a simulation the workers of a machine share the folder, so a blob lies there once however
    many devices hold it; in a deployment each device has its own. Its folders are for the eyes of
    its user alone. A device that is no whole number from 0, and a digest that is none, raise
    ValueError: both come in messages, and neither may lead out of the folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)

    def holds(self, device: int, digest: str) -> bool:
        """Tell whether the device has received the blob and it still lies there undamaged."""
        return self._marker(device, digest).exists() and self._is_intact(digest)

    def put(self, device: int, digest: str, blob: bytes) -> None:
        """Keep a blob for a device. Raises BadAnswer where the content is not the digest's."""
        if not isinstance(blob, bytes) or sha256(blob) != digest:
            line = f"device {device} received a blob whose SHA-256 is not {digest}"
            raise BadAnswer("blob", line)
        marker = self._marker(device, digest)
        if not self._is_intact(digest):  # else another device of this machine has brought it
            self.write(self._blob(digest), blob)
        make_private(marker.parent)
        marker.touch()

    def get(self, device: int, digest: str) -> bytes:
        """Return a blob the device holds. Raises BadAnswer where it is missing or damaged."""
        self.check(device, digest)
        blob = self._blob(digest).read_bytes()
        if sha256(blob) != digest:  # in spite of its time and size
            self._blob(digest).unlink()
            self.check(device, digest)
        return blob

    def check(self, device: int, digest: str) -> None:
        """Raise BadAnswer where the device does not hold the blob."""
        if not self.holds(device, digest):
            raise BadAnswer("lost", f"device {device} does not hold blob {digest}")

    def own(self, device: int) -> Path:
        """Return the folder of what a device keeps that it was not sent."""
        return self._folder / "own" / str(checked_device(device))

    def write(self, path: Path, content: bytes) -> None:
        """Write a file of the store's, aside; folders that are missing are made private."""
        make_private(path.parent)
        write_aside(path, content)

    def _is_intact(self, digest: str) -> bool:
        path = self._blob(digest)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return False
        return _has_digest(path, digest, stat.st_mtime_ns, stat.st_size)

    def _blob(self, digest: str) -> Path:
        return self._folder / "blobs" / f"{_checked_digest(digest)}.safetensors"

    def _marker(self, device: int, digest: str) -> Path:
        return self._folder / "devices" / str(checked_device(device)) / _checked_digest(digest)


def checked_device(device: Any) -> int:
    """Return a device's id as a message tells it. Raises ValueError for what cannot be one."""
    if type(device) is not int or device < 0:
        raise ValueError(f"device {device!r:.80}: must be a whole number from 0")
    return device


def _checked_digest(digest: Any) -> str:
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ValueError(f"digest {digest!r:.80}: must be the 64 hexadecimal digits of a SHA-256")
    return digest


@lru_cache(maxsize=64)
def _has_digest(path: Path, digest: str, mtime_ns: int, size: int) -> bool:
    """Hash a file, once as long as its time and size stay the same."""
    return sha256(path.read_bytes()) == digest
