from __future__ import annotations

import pytest
import torch
from local_grid import LocalGrid
from small_experiments import halves, small_experiment

from dccl_flower import numpy_client_app
from dccl_flower.simulations.app.in_process import rounds_here
from dccl_flower.simulations.app.server_app import make_strategy


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
