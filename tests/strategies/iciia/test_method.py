from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_experiments import device_of, end_of, halves

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.method import Answer
from dccl_flower.models.frozen import exchanged_state
from dccl_flower.simulations.experiment import check_devices, open_experiment

QUICK = ("pretrain.epochs=1", "adaptation.epochs=1", "devices.count=4", "adaptation.clients=20")


def experiment_of(*overrides):
    return open_experiment(load_conf("iciia_digits", [*QUICK, *overrides]))


@pytest.fixture(scope="module")
def experiment():
    return experiment_of()


@pytest.fixture(scope="module")
def both(experiment):
    return halves(experiment)


def asked(server, devices=(0, 1, 2, 3)):
    going = server.round(1, server.initial_state(), devices)
    return going, next(going)


def test_devices_are_sent_backbone_and_module_once_and_give_scores_alone(both):
    going, asks = asked(both[0])
    assert len({id(ask) for ask in asks.values()}) == 1
    ask = asks[0]
    assert (ask.state, ask.like, list(ask.keep)) == ({}, {}, ["backbone", "adaptation"])
    assert ask.keep["backbone"].digest == asked(both[0])[1][0].keep["backbone"].digest
    going.close()


def test_scores_are_over_all_images_and_there_are_none_before(experiment):
    server, _ = halves(experiment)
    assert list(server.scores({})) == []
    assert server.references() == {}
    going, _ = asked(server)
    right = {0: ([8, 6, 9], 10), 1: ([25, 20, 30], 30)}
    answers = {
        d: Answer(d, {}, count, {}, {"correct": torch.tensor(correct)})
        for d, (correct, count) in right.items()
    }
    assert end_of(going, answers) == {}
    assert dict(server.scores({})) == pytest.approx({"accuracy": 33 / 40})
    assert server.references()["backbone"] == pytest.approx({"accuracy": 26 / 40})
    assert server.references()["oracle"] == pytest.approx({"accuracy": 39 / 40})


def test_a_device_scores_what_its_module_gives(both, experiment, tmp_path):
    server, half = both
    going, asks = asked(server)
    answers = {d: half.turn(asks[d], device_of(experiment, d, tmp_path)) for d in asks}
    merged = half.merge(asks[0].turn, list(answers.values()))
    end_of(going, answers)
    scores = dict(server.scores({})), server.references()
    assert merged.count == sum(answer.count for answer in answers.values())
    assert merged.count == sum(experiment.device_test_loader(d).num_samples for d in asks) > 200
    shares = (merged.beside["correct"] / merged.count).tolist()
    assert shares[0] == pytest.approx(scores[0]["accuracy"])
    assert shares[1] == pytest.approx(scores[1]["backbone"]["accuracy"])
    assert all(answer.state == {} for answer in answers.values())
    # On the cloud the same images get the same answers.
    served_here = [answer.beside["correct"] for answer in server._served_here()]
    assert torch.stack(served_here).sum(0).tolist() == merged.beside["correct"].tolist()


def test_what_a_device_has_seen_is_kept(both, experiment, tmp_path, monkeypatch):
    server, half = both
    _, asks = asked(server)
    device = device_of(experiment, 2, tmp_path)
    first = half.turn(asks[2], device)
    monkeypatch.setattr(
        "dccl_flower.strategies.iciia.device.seen_by", lambda *_: pytest.fail("computed again")
    )
    again = half.turn(asks[2], device_of(experiment, 2, tmp_path))
    assert again.beside["correct"].tolist() == first.beside["correct"].tolist()


@pytest.mark.parametrize("by", ["feed_forward", "fine_tuning", "prompt", "oracle", "none"])
def test_every_adaptation_runs(by, tmp_path):
    experiment = experiment_of(f"adaptation.by={by}")
    server, half = halves(experiment)
    going, asks = asked(server, [1])
    answer = half.turn(asks[1], device_of(experiment, 1, tmp_path))
    adapted, backbone, oracle = answer.beside["correct"].tolist()
    end_of(going, {1: answer})
    assert 0 <= backbone <= oracle <= answer.count
    if by == "none":
        assert adapted == backbone
    if by == "oracle":
        assert adapted == oracle


def test_federated_devices_train_the_module_and_score_it_next(tmp_path):
    experiment = experiment_of("method.training=federated", "rounds.local_steps=2")
    server, half = halves(experiment)
    state = server.initial_state()
    going = server.round(1, state, [0, 1])
    asks = next(going)
    answers = {d: half.turn(ask, device_of(experiment, d, tmp_path)) for d, ask in asks.items()}
    assert answers[0].count == len(experiment.plan.devices[0])
    total = sum(answer.count for answer in answers.values())
    scoring = going.send(answers)
    mean = {
        name: sum(answer.state[name] * answer.count for answer in answers.values()) / total
        for name in state
    }
    torch.testing.assert_close(scoring[0].state, mean)
    moved = (mean["head.weight"] - state["head.weight"]).abs().max()
    assert moved > 1e-4  # where weight decay alone would not move it
    assert list(scoring[0].keep) == ["backbone"]
    scored = {d: half.turn(ask, device_of(experiment, d, tmp_path)) for d, ask in scoring.items()}
    torch.testing.assert_close(end_of(going, scored), mean)
    torch.testing.assert_close(exchanged_state(half._module), scoring[0].state)


def test_who_did_not_train_is_not_asked_to_score(tmp_path):
    experiment = experiment_of("method.training=federated", "rounds.local_steps=1")
    server, half = halves(experiment)
    going = server.round(1, server.initial_state(), [0, 1])
    asks = next(going)
    assert list(going.send({1: half.turn(asks[1], device_of(experiment, 1, tmp_path))})) == [1]


def test_adaptations_that_need_no_clients_do_not_ask_for_them():
    for override in ("adaptation.by=none", "method.training=federated"):
        assert check_devices(experiment_of("adaptation.clients=5000", override))


def test_the_module_is_the_same_for_a_seed_and_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCCL_CACHE", str(tmp_path))
    reused = experiment_of("runtime.reuse=true")
    fresh = experiment_of()
    states = [halves(each)[0].state_dict({})["adaptation"] for each in (reused, reused, fresh)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    torch.testing.assert_close(states[0], states[2], rtol=0, atol=0)
    kept = sorted(path.name.split("-")[0] for path in tmp_path.glob("*-*") if path.is_dir())
    assert {"backbone", "module"} <= set(kept)


def test_a_device_without_an_image_is_not_asked(experiment, monkeypatch, caplog):
    server, _ = halves(experiment)
    loader = experiment.device_test_loader

    def without_device_1(number):
        found = loader(number)
        return replace(found, rows=found.rows[:0]) if number == 1 else found

    monkeypatch.setattr(type(experiment), "device_test_loader", lambda _, d: without_device_1(d))
    _, asks = asked(server)
    assert list(asks) == [0, 2, 3]
    assert "1 devices have no image to score: 1" in caplog.text


WRONG = {
    "adaptation.partitions=3": "adaptation.partitions=3: must divide the 128 features",
    "adaptation.heads=5": "adaptation.heads=5: must divide the 128 features",
    "adaptation.clients=969 devices.partitioner=iid": "adaptation.clients=969: leaves no client",
    "adaptation.clients=5000": "adaptation.clients=5000: there are only",
    "adaptation.batch_size=2": "adaptation.fewest=4: must be at most 2",
    "adaptation.cached=1": "adaptation.fewest=4: must be at most 2",
    "devices.per_round=2": "devices.per_round=2: not with method.training=cloud",
    "method.training=federated adaptation.by=prompt": "adaptation.by=prompt: not with",
    "method.serves=cloud adaptation.by=prompt": "adaptation.by=prompt: needs method.serves=device",
    "method.serves=cloud method.training=federated": "method.serves=cloud: not with",
    "devices.profiles=phones_two_widths": (
        "devices.profiles=phones_two_widths: tiers[2].co_share=0.5: must be 1 with"
    ),
    "method.backbone=/nowhere": "method.backbone=/nowhere: no finished run is there",
    "model.base=torchvision/squeezenet1_0 data.rgb=true": "model.base=torchvision/squeezenet1_0: ",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_what_does_not_go_together_is_refused_in_a_line(overrides):
    with pytest.raises(ConfError) as error:
        check_devices(experiment_of(*overrides.split()))
    assert str(error.value).startswith(WRONG[overrides])
    assert "\n" not in str(error.value)
