"""``dccl run``: drive the real ``flwr run`` with a SuperLink of its own, and tell how it went."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dccl_flower.config import Conf
from dccl_flower.config_loading import dump_conf
from dccl_flower.simulations.app.events import EventReader
from dccl_flower.simulations.app.run_folder import (
    COMMAND_LOCK,
    CONF_FILE,
    DEVICES_FOLDER,
    LOG_FILE,
    check_resumable,
    locked,
    make_folder,
)
from dccl_flower.simulations.run.cluster import check_cluster
from dccl_flower.simulations.run.display import Display
from dccl_flower.simulations.run.log_cause import cause_in
from dccl_flower.simulations.superlink import FlowerError, RunError, SuperLink

MAX_DEFAULT_NODES = 100
POLL_SECONDS = 0.3
SOON_SECONDS = 5.0
STATUS_SECONDS = 60.0
START_SECONDS = 300.0

APP_TEMPLATE = """\
[project]
name = "dccl-run"
version = "{version}"
description = "A run of dccl"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "dccl-flower"

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
conf = {conf}
overrides = ""
output = {output}
resume = {resume}
store = {store}
"""


@dataclass(frozen=True)
class App:
    """Where Flower finds the two sides of a run, as ``module:object``.

    Unless ``tuned``, Flower runs without the environment variables that make it faster.
    """

    server: str = "dccl_flower.simulations.app.server_app:app"
    client: str = "dccl_flower.simulations.app.client_app:app"
    tuned: bool = True


OURS = App()
OnEvent = Callable[[dict[str, Any], int], None]


def run_simulation(
    conf: Conf,
    folder: Path,
    port: int,
    display: Display,
    app: App = OURS,
    on_event: OnEvent = lambda event, pid: None,
    ray_address: str | None = None,
    resume: bool = False,
) -> None:
    """Run one experiment, or go on with it, and leave its results in ``folder``.

    With ``ray_address`` the devices train on all nodes of that Ray cluster.
    ``on_event`` is told of every event and of the process below which all of Flower runs.
    Raises ConfError before anything is started, RunError with the log's path where the run fails.
    Whatever happens, the SuperLink and its workers are gone afterwards.
    """
    if resume:
        check_resumable(folder)
    else:
        make_folder(folder)
        (folder / CONF_FILE).write_text(dump_conf(conf))

    def tell(event: dict[str, Any], pid: int) -> None:
        display.show(event)
        on_event(event, pid)

    log_path = folder / LOG_FILE
    display.note("starting Flower")
    with signals_as_interrupts(), locked(folder / COMMAND_LOCK):
        try:
            if ray_address is not None:
                display.note(f"Ray's cluster has {check_cluster(ray_address, folder)} nodes")
            _attempt(conf, folder, port, app, ray_address, resume, tell)
        except RunError as error:
            log = log_path.read_text(errors="replace") if isinstance(error, FlowerError) else ""
            cause = cause_in(log)
            told = f"{cause}; {error}" if cause else str(error)
            raise RunError(f"{told} (log: {log_path})") from error


def _attempt(
    conf: Conf,
    folder: Path,
    port: int,
    app: App,
    ray_address: str | None,
    resume: bool,
    tell: OnEvent,
) -> None:
    """Start Flower, follow the run to its end, and stop Flower. Raises RunError where it fails."""
    reader = EventReader(folder)
    if resume:
        reader.skip()
    with (
        tempfile.TemporaryDirectory(prefix="dccl-", ignore_cleanup_errors=True) as home,
        SuperLink(Path(home), folder / LOG_FILE, port, app.tuned, None, ray_address) as superlink,
    ):
        place = _write_app(Path(home), folder, app, resume)
        run_id = superlink.submit(place, federation(conf, ray_address is not None))
        try:
            for event in _events(superlink, run_id, reader):
                tell(event, superlink.pid)
        except RunError:
            superlink.append_app_log(run_id)
            raise


def federation(conf: Conf, on_cluster: bool = False) -> dict[str, float]:
    """Return the federation that Flower simulates: nodes, workers and their resources.

    A cluster that is there already has its own CPUs and GPUs, and as many workers as fit.
    """
    runtime = conf.runtime
    own = {"init-args-num-cpus": runtime.workers * runtime.threads}
    gpu = {"client-resources-num-gpus": 1 / runtime.workers}
    if runtime.gpu:
        own["init-args-num-gpus"] = 1
    return {
        "num-supernodes": runtime.nodes or min(conf.devices.count, MAX_DEFAULT_NODES),
        "client-resources-num-cpus": runtime.threads,
        "init-args-log-to-driver": False,
        **({} if on_cluster else own),
        **(gpu if runtime.gpu else {}),
    }


def _write_app(home: Path, folder: Path, app: App, resume: bool) -> Path:
    """Write an app without code, as every process imports this package; return its folder."""
    app_folder = home / "app"
    app_folder.mkdir()
    text = APP_TEMPLATE.format(
        version=version("dccl-flower"),
        server=app.server,
        client=app.client,
        conf=json.dumps(str(folder / CONF_FILE)),
        output=json.dumps(str(folder)),
        resume=json.dumps(str(folder) if resume else ""),
        store=json.dumps(str(folder / DEVICES_FOLDER)),
    )
    (app_folder / "pyproject.toml").write_text(text)
    return app_folder


def _events(superlink: SuperLink, run_id: str, reader: EventReader) -> Iterator[dict[str, Any]]:
    """Yield events until the run ends. Raises RunError with the cause where it failed."""
    started = asked = time.monotonic()
    heard, lost_one, processes, ended = False, False, 0, ""
    while True:
        for event in reader.new_events():
            heard = True
            if event["event"] == "failed":
                raise RunError(event["cause"])
            yield event
            if event["event"] == "finished":
                return
        if ended:  # and it has not said how itself
            raise FlowerError(ended)
        now, alive = time.monotonic(), superlink.num_processes()
        lost_one = lost_one or alive < processes
        # Asking costs a second of CPU: ask soon after a process has gone, and else now and then.
        if now - asked > (SOON_SECONDS if lost_one else STATUS_SECONDS):
            asked, lost_one = now, False
            ended = _how_it_ended(superlink, run_id)
        if not heard and now - started > START_SECONDS:
            raise FlowerError(f"the run did not start within {START_SECONDS:.0f} s")
        processes = alive
        time.sleep(POLL_SECONDS)


def _how_it_ended(superlink: SuperLink, run_id: str) -> str:
    """Return what Flower says of a run that has ended; nothing while it goes on or is silent."""
    if not superlink.is_alive():
        return "the SuperLink has died"
    try:
        status, details = superlink.status(run_id)
    except RunError:
        return ""  # a busy machine answers late; the next question may fare better
    if not status.startswith("finished"):
        return ""
    told = " ".join(details.split()) or "no details"
    if "heartbeat" in told:  # nobody was left to say more
        told += "; its process was killed, by hand or for want of memory"
    return f"Flower reports {status}: {told}"


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that nothing is left behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: object) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)  # a second one must not cut the clean-up short
        raise KeyboardInterrupt

    # What is ignored stays so: nohup and background jobs count on it.
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
