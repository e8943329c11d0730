"""``dccl run``: drive the real ``flwr run`` with a SuperLink of its own, and tell how it went."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
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
from dccl_flower.simulations.run.following import WorthAnother, events_of
from dccl_flower.simulations.run.log_cause import cause_in
from dccl_flower.simulations.superlink import FlowerError, RunError, SuperLink
from dccl_flower.standing import last_round

MAX_DEFAULT_NODES = 100
# Without an answer for so many time limits of a round, and then these seconds, a run hangs.
PATIENCE, MORE_SECONDS = 4, 600.0

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
    Where a worker is lost or the run hangs, it goes on from the last complete round, unless that
    happens twice without another one.
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

    display.note("starting Flower")
    with signals_as_interrupts(), locked(folder / COMMAND_LOCK):
        try:
            if ray_address is not None:
                display.note(f"Ray's cluster has {check_cluster(ray_address, folder)} nodes")
            given = (conf, folder, port, app, ray_address)
            _attempts(lambda again: _attempt(*given, resume or again, tell), conf, folder, display)
        except RunError as error:
            raise RunError(_told(error, folder)) from error


def _attempts(attempt: Callable[[bool], None], conf: Conf, folder: Path, display: Display) -> None:
    """Make an attempt, and another from the last complete round as long as that is worth it.

    ``attempt`` takes whether there was one before.
    """
    again, lost_at = False, list[int]()
    while True:
        try:
            return attempt(again)
        except WorthAnother as error:
            done = last_round(folder) or 0
            # What Flower's adaptive clipping has come to is in no checkpoint.
            may = conf.runtime.keep_last > 0 and not conf.privacy.dp.endswith("adaptive")
            if not may or done in lost_at:
                raise
            lost_at.append(done)
            display.note(f"{error}; another attempt after round {done}")
        except KeyboardInterrupt:
            if more := _how_to_go_on(folder):
                display.note(more)
            raise
        again = True


def _told(error: RunError, folder: Path) -> str:
    """Return in one line why a run failed, where its log lies, and how to go on with it."""
    if not folder.is_dir():
        return f"output={folder}: the run directory has been removed during the run"
    log = folder / LOG_FILE
    is_flower_s = isinstance(error, FlowerError) and log.exists()
    cause = cause_in(log.read_text(errors="replace")) if is_flower_s else ""
    told = f"{cause}; {error}" if cause else str(error)
    more = _how_to_go_on(folder)
    return f"{told} (log: {log}){more and '; '}{more}"


def _how_to_go_on(folder: Path) -> str:
    done = last_round(folder)
    return "" if done is None else f"dccl run --resume {folder} goes on after round {done}"


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
            patience = PATIENCE * conf.rounds.timeout + MORE_SECONDS
            for event in events_of(superlink, run_id, reader, patience):
                tell(event, superlink.pid)
        except RunError:
            if folder.is_dir():
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
