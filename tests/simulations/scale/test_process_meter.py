from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import namedtuple

import psutil
import pytest

from dccl_flower.simulations.scale import process_meter
from dccl_flower.simulations.scale.process_meter import (
    DRIVER,
    RAY,
    WORKER,
    ProcessMeter,
    flower_group,
)

Times = namedtuple("Times", ["user", "system"])
Memory = namedtuple("Memory", ["rss"])


class FakeProcess:
    """A process as psutil shows it."""

    def __init__(self, pid, cpu, size_mb, command, born=1.0):
        self.pid = pid
        self.born = born
        self.cpu = cpu
        self.size = size_mb
        self.command = command

    def oneshot(self):
        return contextlib.nullcontext()

    def create_time(self):
        return self.born

    def cpu_times(self):
        return Times(self.cpu - 0.5, 0.5)

    def memory_info(self):
        return Memory(self.size * 1e6)

    def cmdline(self):
        if self.command is None:
            raise psutil.ZombieProcess(self.pid)
        return [self.command]


@pytest.fixture
def sampled(monkeypatch):
    """Return a function that samples one family after the other, at times 10, 20, 30, ..."""

    def sample(*families):
        meter = ProcessMeter(1)
        for place, family in enumerate(families, start=1):
            monkeypatch.setattr(process_meter, "family", lambda pid, family=family: family)
            monkeypatch.setattr(process_meter.time, "time", lambda place=place: 10.0 * place)
            meter._sample()
        return meter

    return sample


def test_cpu_is_interpolated_between_samples(sampled):
    meter = sampled([FakeProcess(7, 2.0, 1, "a")], [FakeProcess(7, 6.0, 1, "a")])
    assert meter.cpu_at(10.0) == pytest.approx(2.0)
    assert meter.cpu_at(12.5) == pytest.approx(3.0)
    assert meter.cpu_at(20.0) == pytest.approx(6.0)
    assert (meter.cpu_at(1.0), meter.cpu_at(99.0)) == (2.0, 6.0)


def test_a_process_that_has_ended_keeps_its_cpu_seconds(sampled):
    parent, child = FakeProcess(7, 2.0, 1, "a"), FakeProcess(8, 5.0, 1, "b")
    meter = sampled([parent, child], [FakeProcess(7, 3.0, 1, "a")])
    assert meter.cpu_at(10.0) == pytest.approx(7.0)
    assert meter.cpu_at(20.0) == pytest.approx(8.0)


def test_a_process_id_given_out_anew_is_another_process(sampled):
    meter = sampled([FakeProcess(7, 2.0, 1, "a")], [FakeProcess(7, 1.0, 1, "a", born=2.0)])
    assert meter.cpu_at(20.0) == pytest.approx(3.0)


def test_the_cpu_of_a_zombie_counts_though_its_command_is_gone(sampled):
    meter = sampled([FakeProcess(7, 2.0, 50, None)])
    assert meter.cpu_at(10.0) == pytest.approx(2.0)
    assert meter.peak_mb(DRIVER) is None


def test_memory_is_the_peak_of_each_group_together_and_of_its_largest(sampled):
    worker = "ray::ClientAppActor.run"
    first = [FakeProcess(1, 1, 100, "flower-superlink"), FakeProcess(2, 1, 300, worker)]
    second = [
        FakeProcess(1, 1, 150, "flower-superlink"),
        FakeProcess(2, 1, 250, worker),
        FakeProcess(3, 1, 200, worker),
    ]
    meter = sampled(first, second)
    assert meter.peak_mb(DRIVER) == 150
    assert meter.peak_mb(WORKER) == 450
    assert meter.largest_mb(WORKER) == 300
    assert meter.peak_mb(RAY) is None


@pytest.mark.parametrize(
    ("command", "group"),
    [
        (["ray::ClientAppActor"], WORKER),
        (["ray::ClientAppActor.run", "", ""], WORKER),
        (["ray::IDLE"], RAY),
        (["/site-packages/ray/core/src/ray/raylet/raylet", "--x"], RAY),
        (["python", "-u", "/site-packages/ray/dashboard/dashboard.py"], RAY),
        (["python", "/bin/flower-superlink", "--insecure"], DRIVER),
        (["python", "/bin/flwr-simulation"], DRIVER),
    ],
)
def test_processes_are_told_apart_by_their_command(command, group):
    assert flower_group(command) == group


def test_a_real_child_is_metered_after_its_end():
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", burn]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ProcessMeter(os.getpid()) as meter, subprocess.Popen(command, **pipes) as child:
        child.stdout.readline()
        meter._sample()
        child.communicate(b"\n")
    own = sum(psutil.Process().cpu_times()[:2])
    spent = meter.cpu_at(float("inf"))  # of this process not yet quite all
    assert spent > own + 0.2
    assert meter.largest_mb(DRIVER) > 5


def test_a_process_that_is_gone_has_no_family():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with ProcessMeter(child.pid) as meter:
        pass
    assert meter.cpu_at(0.0) == 0.0
