"""Flower's SuperLink as a child process of our own: started, asked, and stopped by us."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import psutil

from dccl_flower.config import ConfError
from dccl_flower.simulations.environment import child_environment
from dccl_flower.simulations.guard import HOME, Guard, end, of_home

START_SECONDS = 60.0
COMMAND_SECONDS = 120.0
LOG_SECONDS = 30.0
LOCALHOST = "127.0.0.1"

FASTER = {
    # A thread that waits must not burn the core that a worker needs.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray keeps messages up to this size out of its object store, which is slower.
    "RAY_max_direct_call_object_size": "2000000",
}

CONNECTION = """\
[superlink]
default = "own"
[superlink.own]
address = "127.0.0.1:{port}"
{trust}
"""


class RunError(RuntimeError):
    """The run failed; the message is the cause in one line."""


class FlowerError(RunError):
    """Flower ended the run or did not begin it; the log may say more of the cause."""


def choose_port(explicit: int | None) -> int:
    """Return the port asked for, or a free one. Raises ConfError where the former is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, explicit or 0))
        except OSError as error:
            raise ConfError(f"--port {explicit}: {error.strerror}") from error
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Certificates:
    """PEM files by which a SuperLink proves who it is: its authority's, its own, and its key."""

    authority: Path
    own: Path
    key: Path


class SuperLink:
    """A SuperLink on loopback with a home of its own; use it as a context manager.

    With certificates it speaks TLS to SuperNodes whose keys are registered; without it simulates,
    on a Ray of its own or the cluster of ``ray_address``.
    Flower reads its switches from the environment, and its Ray workers look for modules in the
    SuperLink's working directory first: both are set here. Unless ``tuned``, what only makes it
    faster is left as Flower has it; the user's own environment wins over that.
    """

    def __init__(
        self,
        home: Path,
        log_path: Path,
        port: int,
        tuned: bool = True,
        certificates: Certificates | None = None,
        ray_address: str | None = None,
    ) -> None:
        self._home = str(home.resolve())
        self._log_path = log_path
        self._port = port
        self._certificates = certificates
        trust = "insecure = true"
        if certificates is not None:
            trust = f"root-certificates = {json.dumps(str(certificates.authority.resolve()))}"
        # flwr starts a SuperLink of its own where it finds none, unless it is given an address.
        (home / "config.toml").write_text(CONNECTION.format(port=port, trust=trust))
        self._place: Any = {**flower_place(home), "stdin": subprocess.DEVNULL}
        self._place["env"] = {**(FASTER if tuned else {}), **self._place["env"]}
        # Flower has no setting for it, but Ray looks here, and else for any cluster that is up.
        self._place["env"]["RAY_ADDRESS"] = ray_address or "local"

    def __enter__(self) -> Self:
        command = ["flower-superlink", "--isolation", "subprocess"]
        command += ["--host", LOCALHOST, "--port", str(self._port), *self._flags()]
        self._guard = Guard(self._home)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, **self._place, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._process.pid
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def submit(self, app: Path, federation: dict[str, float]) -> str:
        """Submit the app in a folder by ``flwr run`` and return the run id."""
        # JSON writes numbers and truth values as TOML does.
        settings = " ".join(f"{key}={json.dumps(value)}" for key, value in federation.items())
        given = ["--federation-config", settings] if settings else []
        answer = self._flwr("run", str(app), *given, "--format", "json")
        return str(answer["run-id"])

    def register(self, public_key: Path) -> None:
        """Let the SuperNode in that holds the private half of a key."""
        self._flwr("supernode", "register", str(public_key), "--format", "json")

    def status(self, run_id: str) -> tuple[str, str]:
        """Return a run's status, e.g. ``finished:failed``, and its details."""
        answer = self._flwr("list", "--run-id", run_id, "--format", "json")
        run = answer["runs"][0]
        return str(run["status"]), str(run.get("status-details", ""))

    def append_app_log(self, run_id: str) -> None:
        """Append what server and clients logged, tracebacks included, to the SuperLink's log."""
        with self._log_path.open("ab") as log, contextlib.suppress(subprocess.TimeoutExpired):
            # The stream ends with the run, which may take its time or hang.
            self._call(LOG_SECONDS, log, "log", run_id, "--stream")

    def is_alive(self) -> bool:
        """Tell whether the SuperLink itself runs."""
        return self._process.poll() is None

    def num_processes(self) -> int:
        """Return how many processes the SuperLink and its children are; 0 once it is dead."""
        return len(family(self.pid)) if self.is_alive() else 0

    def stop(self) -> None:
        """End the SuperLink and everything it started, gently first."""
        # Where it was killed, what it started has another parent by now.
        end(list({*family(self.pid), *of_home(self._home)}))
        self._process.wait()
        self._guard.dismiss()

    def _flags(self) -> list[str]:
        if (files := self._certificates) is None:
            return ["--insecure", "--simulation"]
        shown = ["--ssl-ca-certfile", str(files.authority), "--ssl-certfile", str(files.own)]
        return [*shown, "--ssl-keyfile", str(files.key), "--enable-supernode-auth"]

    def _wait_until_healthy(self) -> None:
        scheme, trusted = "http", None
        if self._certificates is not None:
            scheme, trusted = "https", self._certificates.authority
        secure = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=trusted))
        # Opens without the proxy that the environment may name.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not self.is_alive():
                raise FlowerError(f"the SuperLink ended with code {self._process.returncode}")
            with contextlib.suppress(OSError):
                opener.open(f"{scheme}://{LOCALHOST}:{self._port}/health", timeout=1).close()
                if self.is_alive():  # so that it is not another's answer
                    return
            time.sleep(0.1)
        raise FlowerError(f"the SuperLink did not start within {START_SECONDS:.0f} s")

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        try:
            printed = self._call(COMMAND_SECONDS, subprocess.PIPE, *arguments).stdout.decode()
            answer: dict[str, Any] = json.loads(printed[printed.index("{") :])
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise FlowerError(f"flwr {arguments[0]} gave no answer") from error
        if not answer.get("success"):
            cause = " ".join(str(answer.get("error-message", "unknown cause")).split())
            raise FlowerError(f"flwr {arguments[0]}: {cause}")
        return answer

    def _call(
        self, timeout: float, stdout: int | IO[bytes], *arguments: str
    ) -> subprocess.CompletedProcess[bytes]:
        command, silent = ["flwr", *arguments], subprocess.DEVNULL
        return subprocess.run(
            command, **self._place, stdout=stdout, stderr=silent, timeout=timeout, check=False
        )


def flower_place(home: Path) -> dict[str, Any]:
    """Return working directory and environment of a process of Flower's with a home of its own."""
    switches = {
        HOME: str(home.resolve()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    return {"cwd": home, "env": {**child_environment(), **switches}}


def end_family(pid: int) -> None:
    """End a process and everything it started, gently first."""
    end(family(pid))


def family(pid: int) -> list[psutil.Process]:
    """Return everything that a process started, and it as the last; nothing once it has gone."""
    try:
        root = psutil.Process(pid)
        return [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return []
