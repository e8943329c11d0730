from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dccl_flower.learning.evaluate import Scores
from dccl_flower.learning.fidelity import Fidelity
from dccl_flower.simulations.app.results import (
    Results,
    RoundResult,
    append_round,
    final_scores,
    virtual_seconds,
)

ROUNDS = [
    RoundResult(1, 0.5, 0.625, 0.125, -0.25, 1000, 900, 1.5, [0, 3, 11]),
    RoundResult(2, 0.75, 0.75, 0.5, 0.25, 10, 900, 0.25, [7]),
]
HEADER = (
    "round,accuracy,accuracy_cloud_classes,accuracy_device_classes,plug_in_gap,"
    "bytes_down,bytes_up,seconds,devices,virtual_seconds,late,gone"
)


def results():
    return Results(
        conf={"name": "tiny", "rounds": {"count": 2}},
        seed=7,
        versions={"torch": "2"},
        final=final_scores(ROUNDS[-1]),
        cloud_submodel=Scores(0.5, 1.0, 0.0),
        mimic=Scores(0.375, 0.75, 0.0),
        mimic_fidelity={"cloud_classes": Fidelity(0.25, 0.75, 0.5)},
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
        "conf",
        "seed",
        "versions",
        "final",
        "cloud_submodel",
        "mimic",
        "mimic_fidelity",
        "rounds",
        "wire",
        "seconds",
        "peak_rss_mb",
    ]


def test_final_scores_by_hand():
    assert final_scores(ROUNDS[-1]) == {
        "accuracy": 0.75,
        "accuracy_cloud_classes": 0.75,
        "accuracy_device_classes": 0.5,
        "accuracy_mimic_co": 0.5,
        "plug_in_gap": 0.25,
    }


def test_a_mimic_that_serves_better_has_a_negative_gap():
    final = final_scores(ROUNDS[0])
    assert (final["plug_in_gap"], final["accuracy_mimic_co"]) == (-0.25, 0.75)


def test_results_hold_the_values_given(tmp_path):
    content = written(tmp_path)
    assert content["conf"] == {"name": "tiny", "rounds": {"count": 2}}
    assert content["seed"] == 7
    assert content["final"] == final_scores(ROUNDS[-1])
    assert content["cloud_submodel"] == {
        "accuracy": 0.5,
        "accuracy_cloud_classes": 1.0,
        "accuracy_device_classes": 0.0,
    }
    fidelity = {"logit_mse": 0.25, "agreement": 0.75, "kl": 0.5}
    assert content["mimic_fidelity"] == {"cloud_classes": fidelity}
    assert content["wire"] == {"co_up": 1800}


def test_results_hold_every_round(tmp_path):
    rounds = [RoundResult(**entry) for entry in written(tmp_path)["rounds"]]
    assert rounds == ROUNDS


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
        "1,0.5,0.625,0.125,-0.25,1000,900,1.5,0 3 11,,,",
        "2,0.75,0.75,0.5,0.25,10,900,0.25,7,,,",
    ]


def test_a_round_by_the_virtual_clock_tells_its_seconds_and_who_did_not_answer(tmp_path):
    timed = replace(ROUNDS[1], virtual_seconds=2.5, late=[4, 9], gone=[1])
    append_round(tmp_path / "rounds.csv", timed)
    assert (tmp_path / "rounds.csv").read_text().endswith(",7,2.5,4 9,1\n")
    assert virtual_seconds([timed, timed]) == {"virtual": 5.0}
    assert virtual_seconds(ROUNDS) == {}


def test_a_round_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    append_round(tmp_path / "rounds.csv", ROUNDS[0])
    assert len((tmp_path / "rounds.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("field", ["bytes_down", "bytes_up"])
def test_bytes_stay_whole_numbers(tmp_path, field):
    assert isinstance(written(tmp_path)["rounds"][0][field], int)
