"""ICIIA on a finished run of DC-CCL."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from small_experiments import halves

from dccl_flower.checkpoint import load_models
from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.learning.evaluate import accuracy, predict
from dccl_flower.models.build import build_submodels
from dccl_flower.models.served import ServedModel
from dccl_flower.simulations.app.in_process import run_here
from dccl_flower.simulations.experiment import check_devices, open_experiment
from dccl_flower.simulations.run.display import Display

QUICK = ("pretrain.epochs=1", "devices.count=4", "adaptation.clients=20", "adaptation.epochs=1")
ONE_STEP = ("devices.count=4", "rounds.count=1", "rounds.local_steps=1")
DC_CCL = ("method.name=dc_ccl", "pretrain.epochs=1", "distil.epochs=1")


def conf_of(*overrides):
    return load_conf("iciia_digits", overrides)


def finished(folder, *method):
    conf = conf_of(*method, *ONE_STEP)
    run_here(open_experiment(conf), folder, Display())
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("finished") / "run", *DC_CCL)


@pytest.mark.parametrize(("serves", "role"), [("cloud", "cloud_submodel"), ("device", "mimic")])
def test_it_stands_on_what_the_run_serves(run, serves, role):
    experiment = open_experiment(
        conf_of(*QUICK, f"method.backbone={run}", f"method.serves={serves}")
    )
    assert (check_devices(experiment)) == (serves == "device")
    server, _ = halves(experiment)
    of_run, images = load_conf(str(run / "conf.yaml")), experiment.images
    built = build_submodels(of_run, images.shape, images.num_classes)
    states = load_models(run / "models")
    other = built.cloud if serves == "cloud" else built.mimic
    other.load_state_dict(states[role])
    built.co.load_state_dict(states["co_submodel"])
    served = ServedModel(other.eval(), built.co.eval())
    expected, labels = predict(served, experiment.scoring_loader())
    found = torch.cat([server.backbone(images)[1] for images, _ in experiment.scoring_loader()])
    torch.testing.assert_close(found, expected)
    if serves == "cloud":
        assert "accuracy" in dict(server.scores({}))
        held = np.concatenate([experiment.device_test_loader(d).rows for d in range(4)])
        share = accuracy(expected[held], labels[held])
        assert server.references()["backbone"]["accuracy"] == pytest.approx(share)


def refused(*overrides):
    with pytest.raises(ConfError) as error:
        check_devices(open_experiment(conf_of(*QUICK, *overrides)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_runs_that_do_not_fit_are_refused_in_a_line(run, tmp_path):
    given = f"method.backbone={run}"
    assert "its cloud held other images" in refused(given, "seed=1")
    assert "its cloud held other images" in refused(given, "split.device_fraction=0.3")
    assert f"{given}: a run on other images (digits)" in refused(given, "data.name=noise")
    other = finished(tmp_path / "other", "method.name=fedavg")
    assert "a run of method fedavg; expected dc_ccl" in refused(f"method.backbone={other}")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_run_is_told_by_name(run, tmp_path, damage):
    copied = shutil.copytree(run, tmp_path / "run")
    model = copied / "models" / "mimic.safetensors"
    if damage == "missing":
        model.unlink()
    else:
        model.write_bytes(model.read_bytes()[:100])
    experiment = open_experiment(conf_of(*QUICK, f"method.backbone={copied}"))
    with pytest.raises(ConfError, match=r"method.backbone=.*: its models/mimic.safetensors: "):
        halves(experiment)
