"""A run that is stopped three times and goes on ends as one that never was."""

from __future__ import annotations

import pytest
from stopped_runs import left_by, run_once, run_with_stops

FEW = ("devices.count=4", "devices.per_round=2", "rounds.count=4", "rounds.local_steps=2")
CLOUD = (*FEW, "data.train_fraction=0.5", "pretrain.epochs=1", "distil.epochs=1")
SMALL = ("data.world.users=60", "data.world.items=30", "pretrain.epochs=1", "rounds.count=4")
USERS = ("devices.count=5", "devices.per_round=3", *SMALL, "device.epochs=2")
IMAGES = ("data.train_fraction=0.5", "devices.count=4", "rounds.count=3", "pretrain.epochs=1")
MOMENTUM = ("rounds.keep_momentum=true", "rounds.server_momentum=0.5")
MANY = ("devices.count=16", "devices.per_round=4", "devices.over_sampling=1.5")
SETTINGS = {
    "dc_ccl": ("digits", CLOUD),
    "momentum int8 scaffold": (
        "digits",
        (*CLOUD, *MOMENTUM, "wire.codec=int8", "rounds.scaffold=true"),
    ),
    "head tuning": ("digits", (*CLOUD, "head_tuning=federated", "exemplars=10")),
    "mixed statistics": ("digits", (*CLOUD, "normalisation=batch_mixed", "model.co_start=mimic")),
    "profiles": (
        "digits",
        (*CLOUD, *MOMENTUM, *MANY, "devices.profiles=phones_two_widths", "rounds.min_replies=0.1"),
    ),
    "fedavg": ("digits", (*FEW, "method.name=fedavg", "wire.codec=int8")),
    "heterofl": ("digits", (*FEW, "method.name=heterofl")),
    "iciia": (
        "iciia_digits",
        (*IMAGES, "adaptation.epochs=1"),
    ),
    "iciia federated": (
        "iciia_digits",
        (*IMAGES, "method.training=federated"),
    ),
    "metapatch": ("dccl_world", USERS),
    "metapatch on devices": (
        "dccl_world",
        (*USERS, "method.raw_samples=device"),
    ),
    "coda": ("coda_world", (*USERS, "method.report_kept=true")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_stopped_three_times_ends_as_one_that_was_not(name, tmp_path, monkeypatch):
    conf, changes = SETTINGS[name]
    run_once(conf, changes, tmp_path / "at-once")
    run_with_stops(conf, changes, tmp_path / "stopped", (1, 3, 4), monkeypatch)
    assert left_by(tmp_path / "stopped") == left_by(tmp_path / "at-once")
    assert not (tmp_path / "stopped" / "checkpoints").exists()
