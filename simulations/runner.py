"""``dccl run``: drive the real ``flwr run`` with a SuperLink of its own, and tell how it went."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dccl_flower.simulations.display import Display
from dccl_flower.simulations.events import EventReader
from dccl_flower.simulations.run_folder import CONF_FILE, LOG_FILE, make_folder
from dccl_flower.simulations.superlink import RunError, SuperLink, choose_port

from dccl_flower.config import Conf, dump_conf

MAX_DEFAULT_NODES = 100
POLL_SECONDS = 0.3
SOON_SECONDS = 5.0
STATUS_SECONDS = 60.0
START_SECONDS = 300.0

APP_TEMPLATE = """\
[project]
name = "dccl-run"
version = "{version}"

[tool.flwr.app]
publisher = "dccl-flower"

[tool.flwr.app.components]
serverapp = "dccl_flower.simulations.server_app:app"
clientapp = "dccl_flower.simulations.client_app:app"

[tool.flwr.app.config]
conf = {conf}
overrides = ""
output = {output}
"""


def run_simulation(conf: Conf, folder: Path, port: int | None, display: Display) -> None:
    """Run one experiment and leave its results in ``folder``.

    Raises ConfError before anything is written or started, RunError where the run fails.
    Whatever happens, the SuperLink and its workers are gone afterwards.
    """
    chosen_port = choose_port(port)
    make_folder(folder)
    (folder / CONF_FILE).write_text(dump_conf(conf))
    display.note("starting Flower")
    with _signals_as_interrupts(), tempfile.TemporaryDirectory(prefix="dccl-") as home:
        app = Path(home) / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(_app_toml(folder))
        log_path = folder / LOG_FILE
        with SuperLink(Path(home), log_path, chosen_port) as superlink:
            run_id = superlink.submit(app, federation(conf))
            try:
                _follow(superlink, run_id, EventReader(folder), display)
            except RunError as error:
                superlink.append_app_log(run_id)
                raise RunError(f"{error} (log: {log_path})") from error


def federation(conf: Conf) -> dict[str, int | float | bool]:
    """Return the federation that Flower simulates: nodes, workers and their resources."""
    runtime = conf.runtime
    settings: dict[str, int | float | bool] = {
        "num-supernodes": runtime.nodes or min(conf.devices.count, MAX_DEFAULT_NODES),
        "client-resources-num-cpus": runtime.threads,
        "init-args-num-cpus": runtime.workers * runtime.threads,
        "init-args-log-to-driver": False,
    }
    if runtime.gpu:
        settings["client-resources-num-gpus"] = 1 / runtime.workers
        settings["init-args-num-gpus"] = 1
    return settings


def _follow(superlink: SuperLink, run_id: str, reader: EventReader, display: Display) -> None:
    """Show events until the run ends. Raises RunError with the cause where it failed."""
    started = asked = time.monotonic()
    heard, lost_one, processes = False, False, 0
    while True:
        for event in reader.new_events():
            heard = True
            if event["event"] == "failed":
                raise RunError(event["cause"])
            display.show(event)
            if event["event"] == "finished":
                return
        now, alive = time.monotonic(), superlink.num_processes()
        lost_one = lost_one or alive < processes
        # Asking costs a second of CPU: ask soon after a process has gone, and else now and then.
        if now - asked > (SOON_SECONDS if lost_one else STATUS_SECONDS):
            asked, lost_one = now, False
            _check_status(*superlink.status(run_id), reader)
        if not heard and now - started > START_SECONDS:
            raise RunError(f"the run did not start within {START_SECONDS:.0f} s")
        processes = alive
        time.sleep(POLL_SECONDS)


def _check_status(status: str, details: str, reader: EventReader) -> None:
    """Raise RunError where the run has ended without telling so itself."""
    if not status.startswith("finished"):
        return
    last: dict[str, Any] = {}
    for event in reader.new_events():
        last = event
    if last.get("event") == "failed":
        raise RunError(last["cause"])
    if last.get("event") != "finished":
        raise RunError(f"Flower reports {status}: {' '.join(details.split()) or 'no details'}")


def _app_toml(folder: Path) -> str:
    """Return the pyproject of an app without code: every process imports this package."""
    return APP_TEMPLATE.format(
        version=version("dccl-flower"),
        conf=json.dumps(str(folder / CONF_FILE)),
        output=json.dumps(str(folder)),
    )


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that nothing is left behind."""

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: object) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)  # a second one must not cut the clean-up short
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
