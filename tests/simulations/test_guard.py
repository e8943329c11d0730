"""What is left of Flower is found by its home, and ended once nobody else can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from real_runs import left_of

from dccl_flower.simulations.guard import end, of_home

SLEEP = [sys.executable, "-c", "import time; time.sleep(120)"]
WATCHED = """\
import sys, time
from dccl_flower.simulations.guard import Guard
guard = Guard(sys.argv[1])
print("watched", flush=True)
if sys.argv[2] == "dismiss":
    guard.dismiss()
else:
    time.sleep(120)
"""


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    end(of_home(str(folder)))


@pytest.fixture
def two(home):
    """Two processes of a home: one by its environment, one that has lost it but stands there."""
    own = {**os.environ, "FLWR_HOME": str(home)}
    processes = [subprocess.Popen(SLEEP, env=own), subprocess.Popen(SLEEP, cwd=home)]
    return [psutil.Process(each.pid) for each in processes]


def watched(home, then):
    command = [sys.executable, "-c", WATCHED, str(home), then]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "watched\n"
    return process


def test_processes_of_a_home_are_found_and_ended(home, two):
    assert {each.pid for each in of_home(str(home))} == {each.pid for each in two}
    assert of_home(str(home.parent / "another")) == []
    end(two)
    assert left_of(two) == []


def test_they_end_with_a_process_that_is_killed(home, two):
    process = watched(home, "sleep")
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while left_of(two) or home.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_guard_that_is_dismissed_does_nothing(home, two):
    assert watched(home, "dismiss").wait() == 0
    assert left_of(two) == two
    assert home.exists()
