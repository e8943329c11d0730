"""The same rounds with and without Flower between the halves."""

from __future__ import annotations

import pytest
import torch
from local_grid import LocalGrid
from small_experiments import halves, small_experiment, two_widths

from dccl_flower import numpy_client_app
from dccl_flower.codecs import CODECS, encoded_bytes
from dccl_flower.flower.device_app import DeviceClient
from dccl_flower.simulations.app.in_process import rounds_here
from dccl_flower.simulations.app.server_app import make_strategy


def over_flower(experiment, store):
    """Return the last state, the ledger and who answered in each round."""
    server, half = halves(experiment)
    client = DeviceClient(half, experiment.device_loader, store)
    strategy, rounds = make_strategy(experiment.conf, server), []
    grid = LocalGrid(numpy_client_app(lambda context: client), experiment.conf.devices.count)
    result = strategy.start(
        grid,
        strategy.initial_arrays(),
        num_rounds=experiment.conf.rounds.count,
        evaluate_fn=lambda *_: rounds.append(strategy.facts()),
    )
    return strategy.state(result.arrays), strategy.ledger.totals, rounds


def in_process(experiment):
    server, _ = halves(experiment)
    states, rounds = [], []

    def after_round(number, state, facts):
        states.append(state)
        rounds.append(facts)

    sent = rounds_here(experiment, server, after_round)
    return states[-1], sent, rounds


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method.name=dc_ccl", "rounds.keep_momentum=true", "wire.codec=int8"),
        ("head_tuning=federated", "rounds.scaffold=true", "exemplars=20"),
        ("method.name=fedavg", "devices.per_round=2"),
        ("method.name=fedavg", "wire.codec=fp16"),
        ("method.name=heterofl", "two widths"),
        ("two widths", "wire.codec=int8"),
    ],
    ids=lambda overrides: " ".join(overrides) or "as published",
)
def test_both_engines_end_with_the_same_weights_and_count_the_same_bytes(overrides, tmp_path):
    profiles = two_widths(tmp_path)
    changes = [profiles if each == "two widths" else each for each in overrides]
    experiment = small_experiment(*changes)
    theirs, ledger, flower_rounds = over_flower(experiment, tmp_path / "flower")
    ours, sent, rounds = in_process(experiment)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    who = [[list(facts.devices) for facts in each] for each in (rounds, flower_rounds)]
    assert who[0] == who[1]
    assert len(who[0]) == 3
    # Flower writes a header before each array; what no method names is the envelope.
    named = {kind: size for kind, size in ledger.items() if size and not kind.startswith("other")}
    assert {kind for kind, size in sent.items() if size} == set(named)
    assert all(sent[kind] <= size <= 1.2 * sent[kind] + 1000 for kind, size in named.items())


def test_bytes_by_hand():
    experiment = small_experiment("method.name=fedavg")
    state, sent, rounds = in_process(experiment)
    size = encoded_bytes(CODECS["fp32"].encode(state))
    assert sent == {"model_down": 3 * 2 * size, "model_up": 3 * 2 * size}
    assert [(each.bytes_down, each.bytes_up) for each in rounds[1:]] == [(3 * size, 3 * size)] * 2
