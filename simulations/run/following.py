"""Follow a run of Flower by its events, until it ends, is lost, or hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from dccl_flower.simulations.app.events import EventReader
from dccl_flower.simulations.superlink import FlowerError, RunError, SuperLink

POLL_SECONDS = 0.3
SOON_SECONDS = 5.0
STATUS_SECONDS = 60.0
START_SECONDS = 300.0


class WorthAnother(RunError):
    """An attempt at the run was lost; another one may fare better."""


def events_of(
    superlink: SuperLink, run_id: str, reader: EventReader, patience: float
) -> Iterator[dict[str, Any]]:
    """Yield events until the run ends. Raises RunError with the cause where it failed.

    That is WorthAnother where a worker is lost, or no event of the rounds comes for ``patience``
    seconds.
    """
    started = asked = last = time.monotonic()
    heard, in_rounds, lost_one, processes, ended = False, False, False, 0, ""
    while True:
        for event in reader.new_events():
            heard, last = True, time.monotonic()
            if event["event"] == "failed":
                raise (WorthAnother if event.get("again") else RunError)(event["cause"])
            yield event
            if event["event"] == "finished":
                return
            in_rounds = in_rounds or event["event"] == "prepared"
        if ended:  # and it has not said how itself
            raise FlowerError(ended)
        if reader.is_gone():
            raise RunError("the run's events have been removed")
        now, alive = time.monotonic(), superlink.num_processes()
        lost_one = lost_one or alive < processes
        # Asking costs a second of CPU: ask soon after a process has gone, and else now and then.
        if now - asked > (SOON_SECONDS if lost_one else STATUS_SECONDS):
            asked, lost_one = now, False
            ended = _how_it_ended(superlink, run_id)
        if not heard and now - started > START_SECONDS:
            raise FlowerError(f"the run did not start within {START_SECONDS:.0f} s")
        if in_rounds and now - last > patience:
            raise WorthAnother(f"the run hangs: no round has ended for {patience:.0f} s")
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
