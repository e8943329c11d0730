from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from small_experiments import device_of, end_of, filled, halves
from small_worlds import small_world

from dccl_flower.config import ConfError
from dccl_flower.data.interactions import RECENT
from dccl_flower.data.samples import count
from dccl_flower.engine import OpenRound
from dccl_flower.learning.metapatch import proxy
from dccl_flower.learning.ranking import user_scores
from dccl_flower.learning.recommend import predict
from dccl_flower.method import Answer
from dccl_flower.simulations.experiment import check_devices
from dccl_flower.strategies.metapatch.device import Adapt, Score, StageOne, StageTwo
from dccl_flower.strategies.ranked import SCORES

QUICK = ("cloud.stage_1.epochs=1", "cloud.stage_2.epochs=1")
TOLD = torch.tensor([0.75, 1.0, 0.5, 0.5, 4.0], dtype=torch.float64)


def world(*overrides):
    return small_world(
        "dccl_world", "adaptation.rank=4", "adaptation.bottleneck=2", *QUICK, *overrides
    )


@pytest.fixture(scope="module")
def experiment():
    return world()


def begun(server, devices=(0, 1), state=None):
    state = server.initial_state() if state is None else state
    going = server.round(1, state, devices)
    return state, going, next(going)


def told(asks, scores=TOLD, value=0.0):
    """Return hand-made answers: a state of one value, and scores."""
    return {
        d: Answer(
            d, filled(ask.state if ask.like is None else ask.like, value), 1, {}, {SCORES: scores}
        )
        for d, ask in asks.items()
    }


def test_one_ask_takes_model_and_bases_down_and_brings_vectors(experiment):
    server, _ = halves(experiment)
    state, going, asks = begun(server)
    assert asks[0] is asks[1]
    ask = asks[0]
    assert isinstance(ask.turn, Adapt)
    assert {name.split(".")[0] for name in ask.state} == {"model", "patches"}
    assert {name: tuple(t.shape) for name, t in ask.like.items()} == {"vector": (4,)}
    assert (ask.brings, list(ask.wants), ask.keep, ask.beside) == ("vector", ["scores"], {}, {})
    torch.testing.assert_close(ask.state, state, rtol=0, atol=0)
    going.close()


def test_scores_are_of_the_exchange_and_there_are_none_before(experiment):
    server, _ = halves(experiment)
    assert list(server.scores({})) == []
    _, going, asks = begun(server)
    answers = told(asks)
    answers[1].beside[SCORES] = torch.tensor([0.25, 0.0, 0.0, 0.1, 12.0], dtype=torch.float64)
    answers[0].beside[SCORES] = TOLD
    end_of(going, answers)
    assert dict(server.scores({}))["gauc"] == pytest.approx((0.75 * 4 + 0.25 * 12) / 16)
    assert dict(server.scores({}))["hit"] == pytest.approx(0.5)
    assert server.by_device()[1].weight == 12
    assert server.references() == {}


@pytest.mark.parametrize(
    ("learns", "parts"),
    {
        "both": {"model", "patches"},
        "stage_1": {"model"},
        "stage_2": {"patches"},
        "data": {"model"},
        "nothing": set(),
    }.items(),
)
@pytest.mark.parametrize("where", ["cloud", "device"])
def test_a_round_changes_what_the_cloud_learns_and_nothing_else(learns, parts, where, tmp_path):
    experiment = world(f"cloud.learns={learns}", f"method.raw_samples={where}")
    server, half = halves(experiment)
    state = server.initial_state()
    going, turn = OpenRound(server.round(1, state, [0, 1])), (1, 0)
    while going.asks is not None:
        there = {d: device_of(experiment, d, tmp_path, turn) for d in going.asks}
        going.answer({d: half.turn(going.asks[d], there[d]) for d in there})
        turn = (1, turn[1] + 1)
    changed = {name for name in state if not torch.equal(state[name], going.state[name])}
    assert {name.split(".")[0] for name in changed} == parts
    assert not any("origin" in name for name in changed)


def test_the_cloud_keeps_vectors_of_all_who_have_answered(experiment):
    server, _ = halves(experiment)
    state, going, asks = begun(server, [3, 0])
    end_of(going, told(asks, value=0.5))
    _, going, asks = begun(server, [1], state)
    end_of(going, told(asks, value=0.25))
    assert {d: v.tolist() for d, v in server.vectors.items()} == {
        3: [0.5] * 4,
        0: [0.5] * 4,
        1: [0.25] * 4,
    }
    samples, vectors = server._gathered()
    counts = [len(experiment.log.rows_of(int(experiment.users[d]), RECENT)) for d in (3, 0, 1)]
    users = [u for d, n in zip((3, 0, 1), counts, strict=True) for u in [experiment.users[d]] * n]
    assert samples["user"].tolist() == users
    assert vectors[:, 0].tolist() == [0.5] * (counts[0] + counts[1]) + [0.25] * counts[2]


def test_the_teacher_of_both_stages_is_the_device_s_model_as_it_answered(experiment, monkeypatch):
    server, _ = halves(experiment)
    seen = []
    place = "dccl_flower.strategies.metapatch.method.distil"
    monkeypatch.setattr(
        f"{place}_model",
        lambda model, samples, teacher, *_: seen.append(teacher) or model.last.bias.data.add_(1),
    )
    monkeypatch.setattr(f"{place}_patches", lambda *given: seen.append(given[5]))
    state, going, asks = begun(server, [2])
    end_of(going, told(asks, value=0.7))
    server.parts.deployed.load(state)
    own = experiment.device_loader(2).own
    expected = predict(server.parts.patched(torch.full((4,), 0.7)), own)
    assert [each.shape for each in seen] == [expected.shape] * 2
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(seen[1], expected)


def test_a_served_cloud_model_is_scored_after_it_has_learnt():
    server, _ = halves(world("method.serves=cloud"))
    state, going, asks = begun(server)
    scoring = going.send(told(asks))
    ask = scoring[0]
    assert isinstance(ask.turn, Score)
    assert (ask.like, list(ask.wants), ask.brings) == ({}, ["scores"], "scores")
    assert {name.split(".")[0] for name in ask.state} == {"model"}
    assert any(not torch.equal(ask.state[name], state[name]) for name in ask.state)
    after = end_of(going, told(scoring, TOLD / 2))
    assert dict(server.scores(after))["gauc"] == pytest.approx(0.375)
    assert all(torch.equal(ask.state[name], after[name]) for name in ask.state)


def test_bases_are_pretrained_unless_they_are_to_stay_as_drawn():
    states = {}
    for bases in ("pretrained", "drawn"):
        server, _ = halves(world(f"adaptation.bases={bases}"))
        states[bases] = server.initial_state()
    basis = states["drawn"]["patches.bases.0"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(4))
    differ = {n for n, t in states["drawn"].items() if not torch.equal(t, states["pretrained"][n])}
    assert differ == {"patches.bases.0", "patches.bases.1"}


def test_the_proxy_is_scored_after_the_cloud_has_learnt_under_the_device_s_vector(tmp_path):
    experiment = world("method.serves=proxy")
    server, half = halves(experiment)
    device = device_of(experiment, 0, tmp_path)
    _, going, asks = begun(server, (0,))
    adapted = half.turn(asks[0], device)
    ask = going.send({0: adapted})[0]
    assert ask.turn == Score(10, by_proxy=True)
    assert {name.split(".")[0] for name in ask.state} == {"model", "patches", "encoder"}
    parts, scoring = server.parts, device.own.scoring
    own = scoring | {"vector": adapted.state["vector"].expand(count(scoring), -1)}
    logits = predict(proxy(parts.model, parts.patches, parts.encoder), own)
    answer = half.turn(ask, device_of(experiment, 0, tmp_path, (1, 1)))
    found = user_scores(logits, scoring["label"], 10)
    assert answer.beside[SCORES].tolist() == pytest.approx(
        list(asdict(found).values()), nan_ok=True
    )
    going.close()


def test_without_raw_samples_the_stages_are_averages_by_samples():
    server, _ = halves(world("method.raw_samples=device"))
    server._gathered = lambda: pytest.fail("looked at samples of devices")
    _, going, asks = begun(server)
    one = going.send(told(asks))
    assert isinstance(one[0].turn, StageOne)
    assert one[0].turn.has_teachers
    two = going.send({d: Answer(d, filled(ask.state, d), 1 + 2 * d) for d, ask in one.items()})
    assert isinstance(two[0].turn, StageTwo)
    assert {name.split(".")[0] for name in two[0].state} == {"patches", "encoder"}
    assert {float(t.flatten()[0]) for t in two[0].beside["model"].values()} == {0.75}
    after = end_of(going, {d: Answer(d, filled(ask.state, 2 * d), 1) for d, ask in two.items()})
    values = {name.split(".")[0]: float(t.flatten()[0]) for name, t in after.items()}
    assert values == {"model": 0.75, "patches": 1.0}


def test_fedavg_sends_the_model_alone_and_no_teachers():
    server, _ = halves(
        world("adaptation.by=none", "cloud.learns=data", "method.raw_samples=device")
    )
    _, going, asks = begun(server)
    assert asks[0].like == {}
    assert {name.split(".")[0] for name in asks[0].state} == {"model"}
    one = going.send(told(asks))
    assert not one[0].turn.has_teachers
    assert list(server.state_dict(end_of(going, told(one)))) == ["model"]


def test_models_that_serve_have_their_roles(experiment):
    server, _ = halves(experiment)
    assert list(server.state_dict(server.initial_state())) == ["model", "patches", "encoder"]


WRONG = {
    "adaptation.points=[2]": "adaptation.points=[2]: must be different ones of 0..1",
    "adaptation.points=[]": "adaptation.points=[]: must be different ones of 0..1",
    "adaptation.rank=65": "adaptation.rank=65: must lie between 1 and 64",
    "adaptation.rank=33 adaptation.per_patch=true": "adaptation.rank=33: 2 patches take 66 numbers",
    "adaptation.rank=64 adaptation.bottleneck=1": "adaptation.rank=64: must be 1..13",
    "adaptation.by=none": "cloud.learns=both: must be data or nothing with adaptation.by=none",
    "adaptation.by=patches cloud.learns=stage_2": "cloud.learns=stage_2: must be data or nothing",
    "adaptation.by=none cloud.learns=nothing method.serves=proxy": "method.serves=proxy: must be",
    "cloud.beta=-1": "cloud.beta=-1.0: must be",
    "cloud.learns=all": "cloud.learns=all: must be one of",
    "wire.codec=int8 method.raw_samples=device": "wire.codec=int8: not with",
    "devices.profiles=phones_two_widths": (
        "devices.profiles=phones_two_widths: tiers[2].co_share=0.5: must be 1 with "
        "method.name=metapatch, which trains one width"
    ),
}


@pytest.mark.parametrize("overrides", WRONG)
def test_what_does_not_go_together_is_refused_in_a_line(overrides):
    with pytest.raises(ConfError) as error:
        check_devices(world(*overrides.split()))
    assert str(error.value).startswith(WRONG[overrides])
    assert "\n" not in str(error.value)
