"""The conf with pre-trained backbones, offline: small models whose weights the test makes."""

from __future__ import annotations

import pytest
from real_runs import SMALL, results_of, run_in_process
from safetensors.torch import load_file, save_file

from dccl_flower.models.zoo import build_model, own_images

BASE, CO = "timm/resnet10t", "timm/mobilenetv3_small_050"
MODELS = {"model": BASE, "model.co": CO, "model.mimic": CO}
ROLES = {"model": "cloud_submodel", "model.co": "co_submodel", "model.mimic": "mimic"}
OFFLINE = [
    *("data.name=digits", "data.image_column=image", "data.rgb=true", "data.image_size=32"),
    *("devices.count=4", "rounds.local_steps=2", "data.train_fraction=0.5"),
]
STANDING = ["rounds.lr=1e-12", "pretrain.lr=1e-12", "distil.lr=1e-12"]


def test_cloud_and_devices_start_from_the_weights_of_files(tmp_path):
    changes = [f"model.base={BASE}", f"model.co.name={CO}", f"model.mimic.name={CO}"]
    for number, (key, name) in enumerate(MODELS.items()):
        file = tmp_path / f"{key}.safetensors"
        save_file(build_model(name, 3, 20, False, number, "elsewhere").state_dict(), file)
        changes += [f"{key}.pretrained=false", f"{key}.weights={file}"]
    every = [*SMALL, *OFFLINE, *changes, *STANDING]
    folder = run_in_process(tmp_path, *every, conf="pretrained")
    assert results_of(folder)["data"]["mean"] == pytest.approx(own_images(BASE).mean)
    for key, role in ROLES.items():
        first = load_file(tmp_path / f"{key}.safetensors")
        last = load_file(folder / "models" / f"{role}.safetensors")
        convolutions = [name for name, tensor in last.items() if tensor.dim() == 4]
        assert len(convolutions) > 5
        for name in convolutions:
            assert (last[name] - first[name]).abs().max() < 1e-6, (role, name)
