"""How ``dccl run`` ends where it does not end well."""

from __future__ import annotations

import re
import signal
import subprocess
import time

import psutil
import pytest
from real_runs import BIN, SMALL, dccl, environment, left_of

pytestmark = pytest.mark.integration


def test_a_failed_run_tells_cause_and_log_in_one_line(tmp_path):
    done = dccl("digits", *SMALL, "rounds.lr=1e30", "--output", "out", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.search(r"device \d replied with a value in '.*' that is not finite", line)
    log = tmp_path / "out" / "flower.log"
    assert str(log) in line
    assert "Traceback" in log.read_text()
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_interrupt_stops_everything_it_started(tmp_path):
    command = [BIN / "dccl", "run", "digits", *SMALL, "rounds.count=500", "--output", "out"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        # Background jobs ignore the signal and hand that down; here it must be heeded.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (line := process.stdout.readline()).startswith("round 1/"):
            assert line, "the run ended before its first round"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 3
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    time.sleep(1)
    assert left_of(family) == []
