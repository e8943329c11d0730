from __future__ import annotations

import signal
import subprocess
import sys
import time
from threading import Thread

import pytest

from dccl_flower.time_limit import time_limit


def test_what_does_not_return_is_left():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^took longer than 0\.05 seconds$"), time_limit(0.05):
        time.sleep(60)
    assert time.monotonic() - started < 30


def test_what_returns_in_time_is_not_disturbed_later():
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(0.05):
        pass
    time.sleep(0.1)
    assert signal.getsignal(signal.SIGALRM) is before


def test_nothing_begins_once_the_time_is_up():
    with pytest.raises(TimeoutError, match="up before it begins"), time_limit(-1.0):
        raise AssertionError("began")


def test_other_threads_have_no_limit():
    done = []

    def wait():
        with time_limit(0.01):
            time.sleep(0.05)
            done.append(True)

    thread = Thread(target=wait)
    thread.start()
    thread.join()
    assert done


def test_a_process_whose_library_never_returns_ends():
    hung = "import re; re.match('(a*)*b', 'a' * 60)"  # one step of Python
    code = f"from dccl_flower.time_limit import time_limit\nwith time_limit(0.1, 0.2): {hung}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
