"""An end to what would otherwise never return."""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def time_limit(seconds: float, then_exit_after: float | None = None) -> Iterator[None]:
    """Raise TimeoutError in this block once it has run for so many seconds.

    The block is left between two steps of Python: a library's own loop runs to its end first. Where
    it does not end, the process does, ``then_exit_after`` seconds later, if that is given. Only the
    main thread of a process on a POSIX system can be stopped; elsewhere there is no limit.
    """
    if seconds <= 0:
        raise TimeoutError("the time is up before it begins")
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(signal, "setitimer"):
        yield
        return
    around = signal.getitimer(signal.ITIMER_REAL)[0]  # what is left of a limit around this one
    if 0 < around <= seconds:
        yield
        return
    began = time.monotonic()

    def stop(*_: object) -> NoReturn:
        raise TimeoutError(f"took longer than {seconds:.3g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    if then_exit_after is not None:
        last = seconds + then_exit_after
        faulthandler.dump_traceback_later(last, exit=True, file=2)
    try:
        yield
    finally:
        if then_exit_after is not None:
            faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        if around:
            left = around - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))
