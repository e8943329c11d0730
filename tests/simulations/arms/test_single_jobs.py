"""Jobs of ``dccl arms`` and ``dccl search`` that need no Flower runtime, on a few digits."""

from __future__ import annotations

import json

import pytest

from dccl_flower.config_loading import dump_conf, load_conf
from dccl_flower.simulations.arms.arms import RUN_ARM
from dccl_flower.simulations.job import run_job
from dccl_flower.simulations.jobs import make_job
from dccl_flower.simulations.search.search import RUN_CANDIDATE

SMALL = [
    "data.train_fraction=0.3",
    "devices.count=2",
    "pretrain.epochs=2",
    "distil.epochs=2",
    "rounds.count=3",
    "rounds.local_steps=4",
    "runtime.server_threads=1",
    "runtime.reuse=true",
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("DCCL_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def run(function, folder, overrides=(), **facts):
    text = dump_conf(load_conf("digits", [*SMALL, *overrides]))
    make_job("a job", folder, "k", text, function, **facts)
    run_job(folder)
    return json.loads((folder / "result.json").read_text())


def run_arm(folder, model, overrides=()):
    central = ["method.name=central", f"method.model={model}"]
    return run(RUN_ARM, folder, [*central, *overrides], arm=model, in_process=False)


def test_a_candidate_is_scored_by_the_last_rounds_on_images_that_nobody_holds(tmp_path):
    result = run(RUN_CANDIDATE, tmp_path)
    assert result["key"] == "k"
    assert 0 <= result["score"] <= 1
    assert 0 <= result["swing"] <= 1
    # down: mimic once and co three times; up: co three times; about 9 kB each
    assert result["bytes_a_device"] > 6 * 4 * 1000


def test_the_same_candidate_gives_the_same_numbers(tmp_path):
    results = [run(RUN_CANDIDATE, tmp_path / name) for name in "ab"]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]


def test_a_central_candidate_sends_nothing(tmp_path):
    assert run(RUN_CANDIDATE, tmp_path, ["method.name=central"])["bytes_a_device"] == 0


def test_cloud_submodel_and_mimic_are_scored_as_they_are(tmp_path):
    cloud = run_arm(tmp_path / "a", "cloud_submodel", ["rounds.count=1"])
    mimic = run_arm(tmp_path / "b", "mimic", ["rounds.count=1"])
    assert cloud["scores"]["accuracy_device_classes"] == 0  # it has never seen one
    assert cloud["scores"] == cloud["references"]["cloud_submodel"]
    assert mimic["scores"].items() < mimic["references"]["mimic"].items()
    assert list(mimic["scores"]) == list(cloud["scores"])
    assert "bytes_a_device" not in cloud


def test_true_logits_train_another_co_submodel_than_the_mimics(tmp_path):
    central_m = run_arm(tmp_path / "m", "co")
    central_d = run_arm(tmp_path / "d", "co", ["control=cloud_submodel", "rounds.lr=0.05"])
    for result in (central_m, central_d):
        assert -1 <= result["scores"]["plug_in_gap"] <= 1
        assert len(result["rounds"]) == 3
    assert central_m["scores"]["accuracy"] != central_d["scores"]["accuracy"]


def test_the_job_says_which_arm_it_was(tmp_path):
    result = run_arm(tmp_path, "mimic", ["rounds.count=1"])
    assert result["arm"] == "mimic"
    assert "torch" in result["versions"]


def test_results_have_exactly_these_keys_in_this_order(tmp_path):
    run_arm(tmp_path, "mimic", ["rounds.count=1", "seed=7"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results) == [
        *("conf", "seed", "data", "versions", "final", "references"),
        *("rounds", "faults", "wire", "seconds", "peak_rss_mb"),
    ]
    assert (results["seed"], results["conf"]["seed"], results["wire"]) == (7, 7, {})
    assert results["final"].items() <= results["references"]["mimic"].items()
    assert list(results["seconds"]) == ["pretrain", "distil", "rounds", "total"]
    assert list(results["peak_rss_mb"]) == ["server", "worker"]
