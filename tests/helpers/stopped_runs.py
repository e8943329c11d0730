"""Runs that are stopped while a device takes its turn, and what they leave in the end."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from dccl_flower.config_loading import load_conf
from dccl_flower.method import find_method
from dccl_flower.simulations.app import in_process
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.run.display import Display

NOT_THE_SAME = ("seconds", "peak_rss_mb", "versions")


class Stopped(BaseException):
    """Stands for what no code can see coming."""


class Stopping:
    """A device's half that stops the process after so many turns; its work is done by then."""

    def __init__(self, half, turns_left):
        self.turns, self.state_like, self.merge = half.turns, half.state_like, half.merge
        self._half, self._left = half, turns_left

    def turn(self, ask, device):
        answer = self._half.turn(ask, device)
        self._left -= 1
        if self._left < 0:
            raise Stopped
        return answer


def run_once(conf, changes, folder, resume=False):
    threads = torch.get_num_threads()
    try:
        in_process.run_here(open_experiment(load_conf(conf, changes)), folder, Display(), resume)
    finally:
        torch.set_num_threads(threads)  # which other tests' sums depend on


def run_with_stops(conf, changes, folder, stops, monkeypatch):
    """Run in attempts, each of which is stopped in the turn after so many; the last one is not."""
    for attempt, turns in enumerate(stops):
        with monkeypatch.context() as patch:
            stop(conf, changes, folder, turns, patch, resume=attempt > 0)
    run_once(conf, changes, folder, resume=True)


def stop(conf, changes, folder, turns, patch, resume=False):
    """Make an attempt that is stopped in the turn after so many."""
    kind = find_method(load_conf(conf, changes).method.name)
    stopping = replace(kind, device=lambda experiment: Stopping(kind.device(experiment), turns))
    patch.setattr(in_process, "find_method", lambda _: stopping)
    try:
        run_once(conf, changes, folder, resume)
    except Stopped:
        return
    raise AssertionError(f"the run ended within {turns} turns")


def left_by(folder):
    """Return all that a run leaves and that time has no part in: results, scores, models."""
    results = json.loads((folder / "results.json").read_text())
    for key in NOT_THE_SAME:
        del results[key]
    for row in results["rounds"]:
        del row["seconds"]
    models = {path.name: path.read_bytes() for path in (folder / "models").iterdir()}
    lines = (folder / "rounds.csv").read_text().splitlines()
    header = lines[0].split(",")
    at = header.index("seconds")
    table = [line.split(",")[:at] + line.split(",")[at + 1 :] for line in lines]
    return results, models, table
