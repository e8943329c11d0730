from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from local_grid import LocalGrid
from small_experiments import halves, small_experiment

from dccl_flower import numpy_client_app
from dccl_flower.flower.device_app import DeviceClient
from dccl_flower.simulations.app.in_process import rounds_here
from dccl_flower.simulations.app.server_app import make_strategy
from dccl_flower.standing import Standing


@pytest.mark.parametrize("model", ["co", "base", "mimic"])
def test_a_method_that_asks_nobody_runs_and_sends_nothing(model):
    experiment = small_experiment("method.name=central", f"method.model={model}")
    strategy = make_strategy(experiment.conf, halves(experiment)[0])
    grid = LocalGrid(numpy_client_app(lambda context: None), 2)
    states, facts = [], []

    def after_round(number, arrays):
        states.append(strategy.state(arrays))
        facts.append(strategy.facts())

    result = strategy.start(grid, strategy.initial_arrays(), num_rounds=2, evaluate_fn=after_round)
    assert grid.sent == []
    assert dict(strategy.ledger.totals) == result.train_metrics_clientapp == {}
    assert [(list(each.devices), each.bytes_down, each.bytes_up) for each in facts] == 3 * [
        ([], 0, 0)
    ]
    here = []
    rounds_here(experiment, halves(experiment)[0], lambda number, state, _: here.append(state))
    for ours, theirs in zip(here, states, strict=True):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


class Stop(Exception):
    """Ends the rounds after one of them."""


def begun(experiment, store, stop_after=None, standing=None):
    """Run the rounds over Flower; return the strategy, its last state and where it stood."""
    server, half = halves(experiment)
    strategy, stood = make_strategy(experiment.conf, server), []
    client = DeviceClient(half, experiment.device_loader, store)
    grid = LocalGrid(numpy_client_app(lambda context: client), experiment.conf.devices.count)
    if standing is not None:
        server.remember(standing.memory)
        strategy.go_on(standing)

    def after_round(number, arrays):
        number, state = strategy.done + number, strategy.state(arrays)
        strategy.facts()
        stood[:] = [Standing(number, state, server.memory(), strategy.memory())]
        if number == stop_after:
            raise Stop

    rounds = experiment.conf.rounds.count - strategy.done
    with suppress(Stop):
        strategy.start(grid, strategy.initial_arrays(), rounds, evaluate_fn=after_round)
    return stood[0]


def test_another_strategy_goes_on_to_the_same_state_and_the_same_bytes(tmp_path):
    changes = ("rounds.count=4", "devices.per_round=2", "rounds.keep_momentum=true")
    experiment = small_experiment(*changes, "wire.codec=int8")
    at_once = begun(experiment, tmp_path / "at-once")
    half = begun(experiment, tmp_path / "in-two", stop_after=2)
    whole = begun(experiment, tmp_path / "in-two", standing=half)
    assert (half.number, whole.number) == (2, 4)
    for name, tensor in at_once.state.items():
        assert torch.equal(whole.state[name], tensor)
    assert {**whole.engine, "run": ""} == {**at_once.engine, "run": ""}
