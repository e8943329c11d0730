"""Excerpts of real logs; what lies between the lines of a traceback is cut short."""

from __future__ import annotations

import pytest

from dccl_flower.simulations.run.log_cause import LONGEST, cause_in

SUPERLINK_CANNOT_IMPORT = """\
Traceback (most recent call last):
  File ".venv/bin/flower-superlink", line 5, in <module>
    from flwr.superlink.cli import flower_superlink
ImportError: cannot import name Config from partially initialized module
"""
RAY_CANNOT_START = """\
\x1b[91mERROR \x1b[0m:     An exception occurred !! Simulation Runtime crashed.
\x1b[91mERROR \x1b[0m:     Traceback (most recent call last):
  File "flwr/server/superlink/fleet/vce/vce_api.py", line 214, in run_api
    backend = backend_fn()
              ^^^^^^^^^^^^
ValueError: When connecting to an existing cluster, num_cpus and num_gpus must not be provided.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "flwr/server/superlink/fleet/vce/vce_api.py", line 267, in run_api
    raise RuntimeError("Simulation Runtime crashed.") from ex
RuntimeError: Simulation Runtime crashed.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "flwr/simulation/run_simulation.py", line 347, in _main_loop
    raise RuntimeError("An error was encountered. Ending simulation.") from ex
RuntimeError: An error was encountered. Ending simulation.
\x1b[91mERROR \x1b[0m:     Exit Code: 700

An unhandled exception occurred when running the simulation.

For more information, visit: <https://flower.ai/docs/framework/1.42/en/ref-exit-codes/700.html>
\x1b[92mINFO \x1b[0m:      SuperExec terminated gracefully.
2026-11-25T10:02:43.283Z INFO [uvicorn.error] Shutting down
"""
PORT_TAKEN = """\
\x1b[92mINFO \x1b[0m:      SuperLinkLifespan: start
2026-11-25T10:48:13.521Z INFO [uvicorn.error] Application startup complete.
2026-11-25T10:48:13.529Z ERROR [uvicorn.error] [Errno 98] error while attempting to bind on \
address ('127.0.0.1', 35729): address already in use
2026-11-25T10:48:13.529Z INFO [uvicorn.error] Waiting for application shutdown.
"""


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (SUPERLINK_CANNOT_IMPORT, "ImportError: cannot import name Config from partially"),
        (RAY_CANNOT_START, "ValueError: When connecting to an existing cluster, num_cpus and"),
        (PORT_TAKEN, "[Errno 98] error while attempting to bind on address"),
        (SUPERLINK_CANNOT_IMPORT + RAY_CANNOT_START, "ValueError: When connecting to an"),
    ],
)
def test_the_cause_stands_in_the_log(log, cause):
    assert cause_in(log).startswith(cause)


def test_an_error_while_another_was_handled_is_the_cause():
    other = "\nDuring handling of the above exception, another exception occurred:\n\n"
    last = "Traceback (most recent call last):\n  File x\npackage.Odd: at  last\n"
    assert cause_in(SUPERLINK_CANNOT_IMPORT + other + last) == "package.Odd: at last"


def test_a_quiet_log_has_no_cause():
    assert cause_in("") == ""
    assert cause_in("INFO: all is well\nValueError: in a message only\n") == ""


def test_a_long_cause_is_cut():
    assert len(cause_in(SUPERLINK_CANNOT_IMPORT.replace("Config", "C" * 999))) == LONGEST
