from __future__ import annotations

import pytest
import torch
from small_experiments import halves, small_experiment, two_widths

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.method import find_method
from dccl_flower.simulations.app.in_process import rounds_here


def ended(server, state, rounds=2):
    """Run rounds that ask nobody; return the last state."""
    for number in range(1, rounds + 1):
        with pytest.raises(StopIteration) as end:
            next(server.round(number, state, []))
        state = end.value.value
    return state


def test_pooled_training_of_the_co_submodel_asks_nobody_and_trains():
    experiment = small_experiment("method.name=central", "rounds.local_steps=8")
    server, _ = halves(experiment)
    first = server.initial_state()
    last = ended(server, first)
    weights = [name for name in first if name.endswith("weight")]
    assert all(not torch.equal(first[name], last[name]) for name in weights)
    assert set(dict(server.scores(last))) >= {"accuracy", "accuracy_mimic_co", "plug_in_gap"}


def test_pooled_training_is_the_same_each_time():
    one, two = (
        ended(server, server.initial_state())
        for server, _ in (halves(small_experiment("method.name=central")) for _ in range(2))
    )
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


@pytest.mark.parametrize("model", ["cloud_submodel", "mimic"])
def test_what_is_ready_with_the_cloud_scores_as_a_reference(model):
    server, _ = halves(small_experiment("method.name=central", f"method.model={model}"))
    first = server.initial_state()
    last = ended(server, first)
    assert all(torch.equal(last[name], tensor) for name, tensor in first.items())
    references = server.references()
    common = references["cloud_submodel"].keys() & references["mimic"].keys()
    told = {name: value for name, value in references[model].items() if name in common}
    assert dict(server.scores(last)) == told
    assert len(told) == 3


@pytest.mark.parametrize(("data", "learns"), [("pooled", True), ("cloud", False)])
def test_the_base_model_learns_device_classes_from_pooled_data_only(data, learns):
    changes = ("method.name=central", "method.model=base", f"method.data={data}")
    changes += ("data.train_fraction=0.3", "pretrain.epochs=12")
    server, _ = halves(small_experiment(*changes))
    scores = dict(server.scores(ended(server, server.initial_state(), rounds=1)))
    assert scores["accuracy_cloud_classes"] > 0.5
    assert (scores["accuracy_device_classes"] > 0.6) == learns
    assert (scores["accuracy_device_classes"] < 0.2) != learns


def test_the_base_model_is_trained_once_however_often_it_is_prepared():
    server, _ = halves(small_experiment("method.name=central", "method.model=base"))
    before = server.initial_state()
    server.prepare()
    assert all(torch.equal(before[name], t) for name, t in server.initial_state().items())


def test_the_epochs_of_the_base_model_are_told():
    changes = ("method.name=central", "method.model=base", "pretrain.epochs=2")
    told = []
    method = find_method("central").server(
        small_experiment(*changes), lambda *what: told.append(what[:3])
    )
    method.prepare()
    assert told == [("pretrain", 1, 2), ("pretrain", 2, 2)]


def test_every_bound_runs_under_the_virtual_clock_of_the_devices(tmp_path):
    def virtual_seconds(model):
        changes = ("method.name=central", f"method.model={model}", two_widths(tmp_path))
        experiment, facts = small_experiment(*changes), []
        rounds_here(experiment, halves(experiment)[0], lambda *of_round: facts.append(of_round[2]))
        return facts[-1].virtual_seconds

    assert virtual_seconds("base") == virtual_seconds("co") > 0


def test_an_unknown_model_is_refused_by_name():
    with pytest.raises(ConfError, match=r"method\.model=none: must be one of co, base"):
        load_conf("digits", ["method.name=central", "method.model=none"])


def test_what_is_of_two_sides_is_said_to_have_no_effect(caplog):
    idle = ["normalisation=batch_frozen", "rounds.max_grad_norm=1", "exemplars=9"]
    halves(small_experiment("method.name=central", *idle))
    told = "normalisation=batch_frozen, exemplars=9: no effect with method.name=central"
    assert [record.getMessage() for record in caplog.records] == [told]
    caplog.clear()
    halves(small_experiment("method.name=central", "normalisation=group"))
    assert caplog.records == []
