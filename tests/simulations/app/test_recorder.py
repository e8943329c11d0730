from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dccl_flower.config_loading import load_conf
from dccl_flower.engine import RoundFacts
from dccl_flower.image_experiment import ImageExperiment
from dccl_flower.simulations.app import recorder as recorder_module
from dccl_flower.simulations.app.events import EventReader, EventWriter
from dccl_flower.simulations.app.recorder import Recorder, append_row, round_row

FACTS = [
    RoundFacts([0, 3, 11], 1000, 900, worker_peak_mb=80.0),
    RoundFacts([7], 10, 900, worker_peak_mb=70.0, faults={"raised": 1, "silent": 2}),
]
ROWS = [
    round_row(1, {"accuracy": 0.5, "gap": -0.25}, 1.5, FACTS[0]),
    round_row(2, {"accuracy": 0.75, "gap": 0.25}, 0.25, FACTS[1]),
]
HEADER = "round,accuracy,gap,seconds,devices,bytes_down,bytes_up,virtual_seconds,late,gone,faults"


def test_a_round_has_its_scores_by_name_and_what_the_engine_tells():
    assert json.loads(json.dumps(ROWS[0])) == {
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
        "faults": {},
    }


def test_rounds_csv_has_a_header_and_a_line_a_round(tmp_path):
    path = tmp_path / "rounds.csv"
    for row in ROWS:
        append_row(path, row)
    assert path.read_text().splitlines() == [
        HEADER,
        "1,0.5,-0.25,1.5,0 3 11,1000,900,,,,",
        "2,0.75,0.25,0.25,7,10,900,,,,raised=1 silent=2",
    ]


def test_a_round_by_the_virtual_clock_tells_its_seconds_and_who_did_not_answer(tmp_path):
    facts = replace(FACTS[1], virtual_seconds=2.5, late=[4, 9], gone=[1])
    append_row(tmp_path / "rounds.csv", round_row(2, {}, 0.25, facts))
    assert (tmp_path / "rounds.csv").read_text().endswith(",2.5,4 9,1,raised=1 silent=2\n")


@pytest.mark.parametrize("field", ["bytes_down", "bytes_up"])
def test_bytes_stay_whole_numbers(field):
    assert isinstance(json.loads(json.dumps(ROWS[0]))[field], int)


class Scored:
    """Stands in for a method: its state is its accuracy."""

    def server(self, experiment, on_progress):
        self.on_progress = on_progress
        return self

    def scores(self, state):
        yield "accuracy", state


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "find_method", lambda name: Scored())
    experiment = ImageExperiment(load_conf("digits"), None, None)
    made = Recorder(experiment, tmp_path, EventWriter(tmp_path))
    yield made
    made.boards.close()


def test_rounds_are_written_down_and_told_but_not_the_one_before_the_first(recorder, tmp_path):
    assert recorder(0, 0.25, RoundFacts()) == {"accuracy": 0.25}
    for number, state in ((1, 0.5), (2, 0.75)):
        recorder(number, state, FACTS[number - 1])
    assert [row["round"] for row in recorder.rounds] == [1, 2]
    assert (recorder.final, recorder.final_state) == ({"accuracy": 0.75}, 0.75)
    assert recorder.worker_peak_mb == 80.0
    assert recorder.so_far() == {"bytes": 2810, "virtual": 0.0}
    told = list(EventReader(tmp_path).new_events())
    assert [event["accuracy"] for event in told] == [0.5, 0.75]
    assert {(event["total"], event["score"]) for event in told} == {(15, "accuracy")}
    assert len((tmp_path / "rounds.csv").read_text().splitlines()) == 3
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_phases_of_a_method_are_told_and_timed(recorder, tmp_path):
    for done in (1, 2):
        recorder.method.on_progress("pretrain", done, 2)
    (first, last) = EventReader(tmp_path).new_events()
    assert (last["event"], last["phase"], last["done"], last["total"]) == (
        "phase",
        "pretrain",
        2,
        2,
    )
    assert first["done"] == 1
    assert recorder.seconds["pretrain"] > 0
