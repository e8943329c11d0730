from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.summary import summarise


def write_run(folder, seed, accuracy, overrides=(), name="digits"):
    scores = {"accuracy": accuracy, "accuracy_cloud_classes": 0.9, "accuracy_device_classes": 0.5}
    results = {
        "conf": asdict(load_conf(name, [f"seed={seed}", "runtime.workers=1", *overrides])),
        "seed": seed,
        "final": {**scores, "plug_in_gap": 0.01},
        "references": {"cloud_submodel": {**scores, "accuracy": 0.8}},
        "wire": {"co_down": 15_000_000, "co_up": 5_000_000},
        "seconds": {"total": 30.0},
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_runs_that_differ_by_seed_share_a_row(tmp_path):
    runs = [write_run(tmp_path / str(s), s, a) for s, a in ((0, 0.94), (1, 0.96), (2, 0.98))]
    row = summarise(runs).splitlines()[2]
    assert row == (
        "| `digits` | 0, 1, 2 | 80.0 ± 0.0 | 96.0 ± 2.0 | +16.0 ± 2.0 | 90.0 ± 0.0 | 50.0 ± 0.0 "
        "| +1.0 ± 0.0 | 2.00 ± 0.00 | 30 ± 0 |"
    )


def test_a_row_names_what_was_set_differently(tmp_path):
    runs = [
        write_run(tmp_path / "a", 0, 0.9),
        write_run(tmp_path / "b", 0, 0.9, ["loss=ce", "rounds.lr=0.5"]),
    ]
    labels = [line.split("|")[1].strip() for line in summarise(runs).splitlines()[2:]]
    assert labels == ["`digits`", "`digits rounds.lr=0.5 loss=ce`"]


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ConfError, match=r"holds no results\.json"):
        summarise([tmp_path])


@pytest.mark.parametrize(
    "changed",
    [{"conf": 1}, {"conf": []}, {"conf": {}}, {"final": "all"}, {"seconds": None}, {"wire": 0}],
)
def test_results_of_another_form_are_no_results(tmp_path, changed):
    folder = write_run(tmp_path / "run", 0, 0.9)
    results = json.loads((folder / "results.json").read_text()) | changed
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfError, match=r"holds no results\.json of a finished run"):
        summarise([folder])


def test_what_a_method_does_not_have_is_a_dash(tmp_path):
    folder = write_run(tmp_path / "run", 0, 0.9)
    results = json.loads((folder / "results.json").read_text())
    results |= {"references": {}, "final": {"accuracy": 0.9}}
    (folder / "results.json").write_text(json.dumps(results))
    assert summarise([folder]).splitlines()[2] == (
        "| `digits` | 0 | - | 90.0 | - | - | - | - | 2.00 | 30 |"
    )


def test_the_same_seed_twice_is_refused(tmp_path):
    runs = [write_run(tmp_path / name, 0, 0.9) for name in "ab"]
    with pytest.raises(ConfError, match="seed 0 of this experiment is given twice"):
        summarise(runs)
