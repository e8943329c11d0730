"""A run's models serve without its data, and score as the run did."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from stopped_runs import run_once

from dccl_flower import load_run
from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.data.images import open_images

SMALL = ("data.train_fraction=0.5", "devices.count=2", "rounds.count=1", "rounds.local_steps=4")
CLOUD = (*SMALL, "pretrain.epochs=2", "distil.epochs=2")
RUNS = {
    "dc_ccl": CLOUD,
    "a backbone of its own": (
        *(*CLOUD, "model.co.name=small_cnn", "model.mimic.name=small_cnn"),
        "normalisation=batch_frozen",
    ),
    "fedavg": (*SMALL, "method.name=fedavg"),
    "heterofl": (*SMALL, "method.name=heterofl"),
    "central": (*CLOUD, "method.name=central", "method.data=pooled", "method.model=base"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_once("digits", CLOUD, folder)
    return folder


def images_and_labels():
    images = open_images(load_conf("digits").data)
    pixels = torch.from_numpy(images.test.copy()).permute(0, 3, 1, 2) / 255
    return pixels, torch.from_numpy(images.test_labels.copy())


@pytest.mark.parametrize("name", RUNS)
def test_what_is_loaded_scores_as_the_run_did(name, tmp_path, monkeypatch):
    run_once("digits", RUNS[name], tmp_path / "run")
    final = json.loads((tmp_path / "run" / "results.json").read_text())["final"]
    pixels, labels = images_and_labels()
    monkeypatch.setenv("DCCL_CACHE", str(tmp_path / "no data here"))
    trained = load_run(tmp_path / "run")
    with torch.inference_mode():
        found = {
            purpose: (module(pixels).argmax(1) == labels).double().mean().item()
            for purpose, module in trained.modules.items()
        }
    told = {"served": "accuracy", "device": "accuracy_mimic_co"}
    assert found == {purpose: pytest.approx(final[told[purpose]]) for purpose in found}
    assert ("device" in found) == ("accuracy_mimic_co" in final)
    assert (trained.shape, trained.num_classes) == ((1, 8, 8), 10)
    assert not (tmp_path / "no data here").exists()


def test_what_is_no_finished_run_is_refused_in_one_line(finished, tmp_path):
    def refusal(folder):
        with pytest.raises(ConfError) as caught:
            load_run(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refusal(tmp_path) == f"{tmp_path}: holds no results.json of a finished run"
    bent = shutil.copytree(finished, tmp_path / "bent")
    (bent / "models" / "mimic.safetensors").write_bytes(b"no model")
    wrong = f"{bent}/models: are not those of its conf.yaml: "
    assert refusal(bent).startswith(wrong)
    (bent / "models" / "mimic.safetensors").unlink()
    assert refusal(bent) == f"{wrong}'mimic'"


def test_a_method_that_needs_more_than_an_image_is_refused(tmp_path):
    run = tmp_path / "run"
    small = ("data.world.users=40", "data.world.items=30", "pretrain.epochs=1", "device.epochs=1")
    run_once("dccl_world", (*small, "devices.count=2", "rounds.count=1"), run)
    with pytest.raises(ConfError, match=r"method\.name=metapatch: its models do not serve images"):
        load_run(run)
