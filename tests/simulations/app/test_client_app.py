from __future__ import annotations

from types import SimpleNamespace

import pytest

from dccl_flower.simulations.app import client_app


@pytest.fixture(autouse=True)
def forget():
    yield
    client_app.cached_experiment.cache_clear()
    client_app._half.cache_clear()


def clients_of(tmp_path, *overrides):
    """Two clients as two messages to one process would get them."""
    text = " ".join([f"devices.store={tmp_path}", *overrides])
    context = SimpleNamespace(run_config={"conf": "digits", "overrides": text}, run_id=1)
    return [client_app.client_fn(context) for _ in range(2)]


def test_modules_and_data_stay_in_the_process(tmp_path):
    first, second = clients_of(tmp_path)
    assert second._half is first._half


def test_without_residency_each_message_meets_them_anew(tmp_path):
    first, second = clients_of(tmp_path, "runtime.resident=false")
    assert second._half is not first._half


@pytest.mark.parametrize("cached", [True, False])
def test_the_configuration_says_whether_logits_are_kept(tmp_path, cached):
    client, _ = clients_of(tmp_path, f"runtime.cache_logits={str(cached).lower()}")
    assert client._half._cache_logits is cached
