"""Run an experiment over a SuperLink with TLS and SuperNodes that prove who they are."""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dccl_flower.simulations.app.events import EventReader
from dccl_flower.simulations.app.run_folder import LOG_FILE, make_folder
from dccl_flower.simulations.deploy.credentials import make_certificates, make_node_key
from dccl_flower.simulations.deploy.supernode import SuperNode
from dccl_flower.simulations.run.display import Display
from dccl_flower.simulations.run.runner import APP_TEMPLATE, OURS, signals_as_interrupts
from dccl_flower.simulations.superlink import FlowerError, RunError, SuperLink, choose_port

POLL_SECONDS = 0.3
# A node that is up asks for messages every few seconds, and a message takes a new process.
SILENT_SECONDS = 300.0


def run_deployed(
    conf: str, overrides: Sequence[str], folder: Path, num_nodes: int, display: Display
) -> None:
    """Run an experiment on loopback with all that a deployment has; its results are in ``folder``.

    Certificates and keys are new, each node has a home, and so a device store, of its own.
    Raises RunError where the run fails. Whatever happens, all that was started is gone afterwards.
    """
    make_folder(folder)
    temporary = tempfile.TemporaryDirectory(prefix="dccl-", ignore_cleanup_errors=True)
    with signals_as_interrupts(), temporary as place, ExitStack() as running:
        home, log, port = Path(place), folder / LOG_FILE, choose_port(None)
        display.note("making certificates and keys")
        certificates = make_certificates(home / "keys")
        keys = [make_node_key(home / "keys", f"node-{each}") for each in range(num_nodes)]
        display.note("starting Flower's SuperLink")
        (home / "superlink").mkdir()
        link = SuperLink(home / "superlink", log, port, certificates=certificates)
        running.enter_context(link)
        display.note(f"starting {num_nodes} SuperNodes")
        nodes = []
        for each, (private, public) in enumerate(keys):
            link.register(public)
            where = (each, num_nodes)
            node = SuperNode(home / f"node-{each}", port, certificates.authority, private, where)
            nodes.append(running.enter_context(node))
        run_id = link.submit(_write_app(home, conf, overrides, folder), {})
        try:
            for event in _events(link, nodes, EventReader(folder)):
                display.show(event)
        except RunError as error:
            link.append_app_log(run_id)
            raise RunError(f"{error} (log: {log})") from error


def _write_app(home: Path, conf: str, overrides: Sequence[str], folder: Path) -> Path:
    """Write an app without code; what it says of the experiment holds on every machine."""
    app = home / "app"
    app.mkdir()
    text = APP_TEMPLATE.format(
        version=version("dccl-flower"),
        server=OURS.server,
        client=OURS.client,
        conf=json.dumps(conf),
        output=json.dumps(str(folder)),
    )
    given = f"overrides = {json.dumps(shlex.join(overrides))}"
    (app / "pyproject.toml").write_text(text.replace('overrides = ""', given))
    return app


def _events(
    link: SuperLink, nodes: Sequence[SuperNode], reader: EventReader
) -> Iterator[dict[str, Any]]:
    """Yield events until the run ends. Raises RunError where it fails or falls silent."""
    heard = time.monotonic()
    while True:
        for event in reader.new_events():
            heard = time.monotonic()
            if event["event"] == "failed":
                raise RunError(event["cause"])
            yield event
            if event["event"] == "finished":
                return
        if not link.is_alive():
            raise FlowerError("the SuperLink has died")
        for node in nodes:
            node.check()
        if time.monotonic() - heard > SILENT_SECONDS:
            raise FlowerError(f"nothing was heard of the run for {SILENT_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
