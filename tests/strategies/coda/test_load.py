from __future__ import annotations

import json

import pytest
from small_worlds import small_world

from dccl_flower.device_store import Parcel
from dccl_flower.method import find_method
from dccl_flower.simulations.app.in_process import run_here
from dccl_flower.simulations.run.display import Display

QUICK = ("data.history=3", "matching.each=2", "rounds.count=1")
SCORES = 5 * 8


def loaded(*overrides):
    """Return the server, its turn, and how many samples a device has and is scored by."""
    experiment = small_world("coda_world", *QUICK, *overrides)
    server = find_method("coda").server(experiment, lambda *_: None)
    held = [experiment.device_loader(d) for d in range(experiment.conf.devices.count)]
    own, new = (
        sum(len(getattr(each, side)["label"]) for each in held) / len(held)
        for side in ("own", "scoring")
    )
    return server, server.workload()(1.0), own, new


def total(load, field):
    return sum(getattr(piece, field) for piece in load.pieces)


def forward_macs(model):
    return 8 * model.deep.layers[0].in_features + 8 * 4 + 5


def test_keys_go_up_samples_come_down_and_the_model_once():
    server, load, own, _ = loaded()
    profiles = len(server.experiment.log.profile_sizes)
    # item, three of the history; of what is found the label and a number for the user, too
    assert total(load, "up_bytes") == round(own * 8 * (1 + 3)) + SCORES
    assert total(load, "down_bytes") == round(2 * own * 4 * (1 + 3 + profiles + 1 + 1))
    assert load.keep_bytes == len(Parcel.of(server.model.state_dict()).blob())


def test_own_samples_and_those_offered_are_trained_on():
    server, load, own, new = loaded()
    forward = forward_macs(server.model)
    assert total(load, "flops") == pytest.approx(
        2 * (own + 2 * own) * 2 * 3 * forward + 2 * new * forward
    )


def test_the_pool_bounds_what_is_offered():
    server, load, _, _ = loaded("matching.most=60", "matching.each=100")
    profiles = len(server.experiment.log.profile_sizes)
    assert total(load, "down_bytes") <= 60 * 4 * (6 + profiles)


@pytest.mark.parametrize(
    ("overrides", "passes", "seen"),
    [
        (("matching.by=nothing",), lambda own: 2 * own, 0),
        (("sieve.keeps=all",), lambda own: 2 * 3 * own, 0),
        (("matching.by=users", "sieve.keeps=users"), lambda own: 2 * own + 2 * own, 0),
        (("sieve.sees=representation",), lambda own: 2 * 3 * own, 3),
        (("method.serves=cloud",), lambda own: 0, 0),
    ],
)
def test_each_way_of_sifting_has_its_passes(overrides, passes, seen):
    server, load, own, new = loaded(*overrides)
    forward = 2 * forward_macs(server.model)
    expected = passes(own) * 3 * forward + (new + seen * own) * forward
    assert total(load, "flops") == pytest.approx(expected)


def test_a_real_round_takes_no_more_down_than_was_foreseen(tmp_path):
    server, load, _, _ = loaded()
    run_here(server.experiment, tmp_path / "run", Display())
    wire = json.loads((tmp_path / "run" / "results.json").read_text())["wire"]
    assert wire["model_down"] == 6 * load.keep_bytes
    assert 0 < wire["matched_down"] <= 6 * total(load, "down_bytes")


def test_the_model_is_what_is_served():
    served = find_method("coda").served(small_world("coda_world", *QUICK))
    ((name, (model, batch)),) = served.items()
    assert (name, tuple(model(batch).shape)) == ("model", (32,))
