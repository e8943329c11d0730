from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dccl_flower.engine import RoundFacts
from dccl_flower.simulations.app.results import (
    Results,
    RoundResult,
    append_round,
    virtual_seconds,
)

ROUNDS = [
    RoundResult(1, {"accuracy": 0.5, "gap": -0.25}, 1.5, RoundFacts([0, 3, 11], 1000, 900)),
    RoundResult(2, {"accuracy": 0.75, "gap": 0.25}, 0.25, RoundFacts([7], 10, 900)),
]
HEADER = "round,accuracy,gap,seconds,devices,bytes_down,bytes_up,virtual_seconds,late,gone"


def results():
    return Results(
        conf={"name": "tiny", "rounds": {"count": 2}},
        seed=7,
        versions={"torch": "2"},
        final=dict(ROUNDS[-1].scores),
        references={"mimic": {"accuracy": 0.375, "kl": 0.5}},
        rounds=ROUNDS,
        wire={"co_up": 1800},
        seconds={"pretrain": 1.5},
        peak_rss_mb={"server": 300.0},
    )


def written(tmp_path):
    results().write(tmp_path / "results.json")
    return json.loads((tmp_path / "results.json").read_text())


def test_results_have_exactly_these_keys_in_this_order(tmp_path):
    assert list(written(tmp_path)) == [
        *("conf", "seed", "versions", "final", "references"),
        *("rounds", "wire", "seconds", "peak_rss_mb"),
    ]


def test_results_hold_the_values_given(tmp_path):
    content = written(tmp_path)
    assert content["conf"] == {"name": "tiny", "rounds": {"count": 2}}
    assert (content["seed"], content["wire"]) == (7, {"co_up": 1800})
    assert content["final"] == {"accuracy": 0.75, "gap": 0.25}
    assert content["references"] == {"mimic": {"accuracy": 0.375, "kl": 0.5}}


def test_a_round_has_its_scores_by_name_and_what_the_engine_tells(tmp_path):
    first, _ = written(tmp_path)["rounds"]
    assert first == {
        "round": 1,
        "accuracy": 0.5,
        "gap": -0.25,
        "seconds": 1.5,
        "devices": [0, 3, 11],
        "bytes_down": 1000,
        "bytes_up": 900,
        "virtual_seconds": None,
        "late": [],
        "gone": [],
    }


def test_writing_again_replaces_the_file_and_leaves_no_other(tmp_path):
    (tmp_path / "results.json").write_text("old")
    assert written(tmp_path)["seed"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_rounds_csv_has_a_header_and_a_line_a_round(tmp_path):
    path = tmp_path / "rounds.csv"
    for result in ROUNDS:
        append_round(path, result)
    assert path.read_text().splitlines() == [
        HEADER,
        "1,0.5,-0.25,1.5,0 3 11,1000,900,,,",
        "2,0.75,0.25,0.25,7,10,900,,,",
    ]


def test_a_round_by_the_virtual_clock_tells_its_seconds_and_who_did_not_answer(tmp_path):
    facts = replace(ROUNDS[1].facts, virtual_seconds=2.5, late=[4, 9], gone=[1])
    timed = replace(ROUNDS[1], facts=facts)
    append_round(tmp_path / "rounds.csv", timed)
    assert (tmp_path / "rounds.csv").read_text().endswith(",2.5,4 9,1\n")
    assert virtual_seconds([timed, timed]) == {"virtual": 5.0}
    assert virtual_seconds(ROUNDS) == {}


@pytest.mark.parametrize("field", ["bytes_down", "bytes_up"])
def test_bytes_stay_whole_numbers(tmp_path, field):
    assert isinstance(written(tmp_path)["rounds"][0][field], int)
