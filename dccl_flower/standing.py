"""Where a run stands after a round: on disk, checked, and read back.

A checkpoint is a folder ``round-00012`` with ``tensors.safetensors``, ``standing.json`` and
``SHA256``, which ``sha256sum --check`` reads too. What was made before the first round lies beside
them, once, as ``prepared``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dccl_flower.checkpoint import from_bytes, to_bytes
from dccl_flower.codecs import State

TENSORS, VALUES, SUMS = "tensors.safetensors", "standing.json", "SHA256"
FOLDER, PREPARED, OF_ROUND = "checkpoints", "prepared", "round-"
OF_STANDING = {"round": int, "engine": dict, "told": dict}
# Types by key, of values or of what a value holds.
Needed = Mapping[str, type | Mapping[str, type]]
logger = logging.getLogger("dccl_flower")


@dataclass(frozen=True)
class Standing:
    """A run after a complete round.

    ``state`` is that of record, ``memory`` what the method keeps beside it. ``engine`` and ``told``
    are plain values: what the engine needs to go on, and what has been written down so far.
    """

    number: int
    state: State
    memory: Mapping[str, State] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The last ``keep_last`` checkpoints in a run's folder; with 0 none is ever written."""

    def __init__(self, run: Path, keep_last: int) -> None:
        self._folder = run / FOLDER
        self._keep_last = keep_last

    def save(self, standing: Standing) -> None:
        """Write a checkpoint, then remove what is too old.

        Where that fails the run goes on, after a warning, with those that it has.
        """
        if self._keep_last == 0:
            return
        values = {"round": standing.number, "engine": standing.engine, "told": standing.told}
        groups = {"state": standing.state}
        groups |= {f"memory/{name}": state for name, state in standing.memory.items()}
        if self._write(f"{OF_ROUND}{standing.number:05d}", groups, values):
            for old in _of_rounds(self._folder)[self._keep_last :]:
                shutil.rmtree(old, ignore_errors=True)

    def save_prepared(self, states: Mapping[str, State]) -> None:
        """Write what was made before the first round, unless it is there."""
        if self._keep_last and not (self._folder / PREPARED).exists():
            self._write(PREPARED, states, {})

    def last(self, needed: Needed = MappingProxyType({})) -> Standing | None:
        """Return the last checkpoint that is not damaged; a warning names each that is.

        ``needed`` are the types, by key, of what its ``engine`` and ``told`` must hold.
        """
        for folder in _of_rounds(self._folder):
            if (read := _read(folder, ["state"], {**OF_STANDING, **needed})) is None:
                continue
            groups, values = read
            memory = {
                name.removeprefix("memory/"): state
                for name, state in groups.items()
                if name != "state"
            }
            told = values["engine"], values["told"]
            return Standing(values["round"], groups["state"], memory, *told)
        return None

    def prepared(self) -> dict[str, State]:
        """Return what was made before the first round; nothing where it is missing or damaged."""
        folder = self._folder / PREPARED
        if not folder.exists():
            return {}
        if (read := _read(folder)) is None:
            shutil.rmtree(folder)
            return {}
        return read[0]

    def _write(self, name: str, groups: Mapping[str, State], values: Mapping[str, Any]) -> bool:
        folder = self._folder / name
        aside = self._folder / f"{name}.{uuid.uuid4().hex}.partial"
        index = {group: list(state) for group, state in groups.items()}
        flat = {_key(group, name): t for group in groups for name, t in groups[group].items()}
        files = {TENSORS: to_bytes(flat), VALUES: json.dumps({**values, "tensors": index}).encode()}
        files[SUMS] = "".join(f"{_sum(blob)}  {path}\n" for path, blob in files.items()).encode()
        try:
            aside.mkdir(parents=True)
            for path, blob in files.items():
                (aside / path).write_bytes(blob)
            shutil.rmtree(folder, ignore_errors=True)  # of a time before the run went back
            aside.rename(folder)
        except OSError as error:
            cause = error.strerror or error
            logger.warning("checkpoint %s is not saved: %s", name, cause)
            return False
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return True


def last_round(run: Path) -> int | None:
    """Return the round of the last checkpoint in a run's folder, damaged or not; None without."""
    found = _of_rounds(run / FOLDER)
    return _number(found[0]) if found else None


def _of_rounds(folder: Path) -> list[Path]:
    """Return the folders of rounds, the last one first."""
    found = folder.glob(f"{OF_ROUND}*")
    numbered = (path for path in found if path.name.removeprefix(OF_ROUND).isdecimal())
    return sorted(numbered, key=_number, reverse=True)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix(OF_ROUND))


def _key(group: str, name: str) -> str:
    return f"{group}/{name}"


def _sum(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _read(
    folder: Path, needed: Sequence[str] = (), types: Needed = MappingProxyType({})
) -> tuple[dict[str, State], dict[str, Any]] | None:
    """Return tensors by group and name, and the values; None, after a warning, where damaged.

    The groups ``needed`` must be there, and the values that ``types`` names, each of its type.
    """
    try:
        files = {path: (folder / path).read_bytes() for path in (TENSORS, VALUES)}
        sums = "".join(f"{_sum(blob)}  {path}\n" for path, blob in files.items())
        if (folder / SUMS).read_bytes() != sums.encode():
            raise ValueError("its SHA-256 is another")
        flat, values = from_bytes(files[TENSORS]), json.loads(files[VALUES])
        groups = {
            group: {name: flat[_key(group, name)] for name in names}
            for group, names in values["tensors"].items()
        }
        if lacking := [group for group in needed if group not in groups]:
            raise ValueError(f"it has no {lacking[0]}")
        _check_types(values, types, "its")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        cause = getattr(error, "strerror", None) or error
        logger.warning("checkpoint %s is damaged (%s): it is passed over", folder, cause)
        return None
    return groups, values


def _check_types(values: Mapping[str, Any], types: Needed, whose: str) -> None:
    for key, kind in types.items():
        expected = kind if isinstance(kind, type) else dict
        if not isinstance(values[key], expected):
            raise ValueError(f"{whose} {key} is no {expected.__name__}")
        if not isinstance(kind, type):
            _check_types(values[key], kind, f"its {key}'s")
