"""Methods beside DC-CCL under device profiles: a round by the virtual clock, run to its end."""

from __future__ import annotations

import json

import pytest
from small_experiments import profiles
from small_worlds import small_world

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.app.in_process import run_here
from dccl_flower.simulations.experiment import check_devices, open_experiment
from dccl_flower.simulations.run.display import Display

SOME = ("devices.per_round=2", "devices.over_sampling=2", "rounds.min_replies=0.5")
IMAGES = ("pretrain.epochs=1", "adaptation.epochs=1", "devices.count=4", "adaptation.clients=20")


def metapatch(*overrides):
    return small_world("dccl_world", "adaptation.rank=4", *SOME, *overrides)


def coda(*overrides):
    return small_world("coda_world", *SOME, *overrides)


def iciia(*overrides):
    few = ("rounds.count=2", "rounds.min_replies=0.25")
    return open_experiment(load_conf("iciia_digits", [*IMAGES, *few, *overrides]))


def federated(*overrides):
    return iciia("method.training=federated", "rounds.local_steps=2", *SOME, *overrides)


METHODS = {each.__name__: each for each in (metapatch, coda, iciia, federated)}
FAST, SLOW = {"flops": 1e10, "drop_out": 0.3}, {"flops": 1e6, "up_mbps": 1e-3, "availability": 0.7}


def rounds_of(experiment, folder):
    run_here(experiment, folder, Display())
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_who_answers_follows_the_clock_and_the_seed(method, tmp_path):
    tiers = profiles(tmp_path, FAST, SLOW)
    first, second = (
        rounds_of(METHODS[method](tiers, "devices.deadline=2"), tmp_path / str(run))
        for run in range(2)
    )
    clocked = ("virtual_seconds", "devices", "late", "gone")
    for one, other in zip(first["rounds"], second["rounds"], strict=True):
        assert [one[key] for key in clocked] == [other[key] for key in clocked]
        assert 0 < one["virtual_seconds"] <= 2
        assert one["devices"]
    assert first["seconds"]["virtual"] == sum(row["virtual_seconds"] for row in first["rounds"])
    assert any(row["late"] or row["gone"] for row in first["rounds"])
    assert first["final"] == second["final"]


@pytest.mark.parametrize("method", METHODS)
def test_no_tier_that_fits_is_refused_in_a_line(method, tmp_path):
    with pytest.raises(ConfError) as error:
        check_devices(METHODS[method](profiles(tmp_path, {"memory_mb": 1e-3})))
    message = str(error.value)
    assert message.startswith("devices.profiles: no tier fits, the largest has 0.001 MB and")
    assert "\n" not in message
