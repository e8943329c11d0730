"""What a child process gets of the user's environment: what it needs, made to hold there."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dccl_flower.cache import cache_root
from dccl_flower.config import ConfError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Ray puts "/ray/session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store" (68 bytes) below its
# folder, and a socket's path ends at 103 bytes on macOS and at 107 on Linux.
LONGEST_RAY_FOLDER = 35
# Of Python's own switches only those stay that say where modules are and how text is read:
# others turn warnings into errors, strip assertions or wait for a person at a prompt.
OF_PYTHON = {
    *("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONHASHSEED"),
    *("PYTHONUTF8", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
}
DROPPED = {
    # A notebook's backend, without which matplotlib cannot even be imported elsewhere.
    "MPLBACKEND",
    # The configuration says how many threads there are, since that decides the order of sums.
    *("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "MKL_NUM_THREADS", "MKL_DYNAMIC"),
    *("OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
}


def child_environment() -> dict[str, str]:
    """Return the environment for a process of ours; it may run in another directory.

    Raises ConfError where no temporary folder can be used.
    """
    child = {name: value for name, value in os.environ.items() if _is_kept(name, value)}
    if child.get("PYTHONPATH"):  # an empty one names no folder, not even this one
        folders = child["PYTHONPATH"].split(os.pathsep)
        child["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders))
    # Flower starts its own commands by name, wherever ours was started from.
    own = str(Path(sys.executable).parent)
    child["PATH"] = os.pathsep.join([own, child.get("PATH") or os.defpath])
    child["DCCL_CACHE"] = str(cache_root())
    child["no_proxy"] = child["NO_PROXY"] = _no_proxy()
    child["TMPDIR"], child["RAY_TMPDIR"] = _temporary_folders()
    return child


def _is_kept(name: str, value: str) -> bool:
    """Tell whether a variable is passed on; all are that no rule here is about."""
    if name.startswith("PYTHON"):
        return name in OF_PYTHON
    if name.startswith("RAY_"):
        # Lower case tunes Ray; upper case ties it to a cluster, a job or a user that is not ours.
        return name[4:5].islower()
    if name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
        # What downloads needs its proxy, but Flower's client cannot be made with one of SOCKS.
        return "://" not in value or value.lower().startswith(("http://", "https://"))
    return name not in DROPPED and not name.startswith("FLWR_")


def _no_proxy() -> str:
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if hosts.strip() == "*":  # urllib heeds the star only where it stands alone
        return hosts
    # Flower's client cannot be made where a host stands in brackets.
    names = (host.strip().strip("[]") for host in hosts.split(","))
    return ",".join(dict.fromkeys([*filter(None, names), *LOOPBACK]))


def _temporary_folders() -> tuple[str, str]:
    """Return Python's temporary folder, which falls back by itself, and one that suits Ray."""
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfError(f"TMPDIR={os.environ.get('TMPDIR', '')}: {error.strerror}") from error
    for folder in _ray_folders(usual):
        if len(os.fsencode(folder)) <= LONGEST_RAY_FOLDER and os.access(folder, os.W_OK | os.X_OK):
            return usual, folder
    raise ConfError(
        f"TMPDIR={usual}: too long for Ray's sockets; expected at most {LONGEST_RAY_FOLDER} bytes"
    )


def _ray_folders(usual: str) -> Iterator[str]:
    if chosen := os.environ.get("RAY_TMPDIR"):
        yield os.path.abspath(chosen)
    # Batch systems give each job a folder deep down; its sockets fit below the short ones.
    yield from (usual, "/tmp", "/var/tmp")
