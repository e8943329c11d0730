"""Shared fixtures: a cache of its own for the whole session, and tiny models."""

from __future__ import annotations

import pytest
import torch
from full_disk import files_up_to

# A second thread makes tiny tensors slower by orders of magnitude where the machine is busy.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Let runs through Flower come first: few and long, they would hold up one worker last."""
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)


@pytest.fixture(autouse=True)
def one_thread_after_all():
    """Give the next test one thread again: with two, sums come in another order."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep decoded images out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def small_files():
    """Let no file grow beyond 20 kB, as if the disk were full."""
    with files_up_to(20_000):
        yield
