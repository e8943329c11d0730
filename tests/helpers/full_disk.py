"""A disk without room, for this process alone: no file of it may grow beyond some bytes."""

from __future__ import annotations

import resource
from contextlib import contextmanager

NO_ROOM = "File too large"  # what a full disk is called here


@contextmanager
def files_up_to(size):
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
