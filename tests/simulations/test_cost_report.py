from __future__ import annotations

import json
from functools import cache

import pytest
from click.testing import CliRunner
from rich.console import Console
from torch import nn

from dccl_flower import image_experiment
from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.models.zoo import build_model
from dccl_flower.simulations.cli import cli
from dccl_flower.simulations.cost_report import cost_report, cost_table


@cache
def report_of(*overrides):
    return cost_report(load_conf("digits", list(overrides)))


def lines_of(report):
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(cost_table(report))
    return capture.get().splitlines()


def row_of(lines, name):
    """Return a row of the table with single spaces."""
    return next(" ".join(line.split()) for line in lines if line.strip().startswith(f"{name} "))


def test_base_and_co_submodel_of_digits_by_hand():
    costs = report_of()["costs"]
    # small_cnn, 1-64-64-128-128 channels, and its eighth; norms have two values a channel.
    assert costs["base"]["parameters"] == 9 * (64 + 64**2 + 64 * 128 + 128**2) + 2 * 384 + 1290
    assert costs["co-submodel"]["parameters"] == 9 * (8 + 8**2 + 8 * 16 + 16**2) + 2 * 48 + 170
    assert list(costs) == ["base", "cloud submodel", "co-submodel", "mimic", "co + mimic"]


def test_a_device_trains_and_sends_the_co_submodel_alone():
    report = report_of()
    rows = report["costs"]
    co, mimic, device = rows["co-submodel"], rows["mimic"], rows["co + mimic"]
    for key in ("parameters", "state_bytes", "forward_macs"):
        assert device[key] == co[key] + mimic[key]
    for key in ("trainable_parameters", "exchanged_bytes", "activation_bytes"):
        assert device[key] == co[key]
    assert device["training_flops"] == co["training_flops"] + 2 * mimic["forward_macs"]
    held = mimic["state_bytes"] + report["batch_size"] * mimic["layer_bytes"]
    assert device["training_memory"] == co["training_memory"] + held
    shares = report["share_of_base"]
    assert shares["base"] == dict.fromkeys(rows["base"], 1.0)
    assert shares["co + mimic"]["parameters"] == pytest.approx(2 * 4370 / 260682)


def test_the_control_may_be_the_cloud_submodel():
    rows = report_of("control=cloud_submodel")["costs"]
    assert list(rows) == ["base", "cloud submodel", "co-submodel", "co + cloud"]
    whole = rows["cloud submodel"]["parameters"] + rows["co-submodel"]["parameters"]
    assert rows["co + cloud"]["parameters"] == whole


def test_without_control_a_device_pays_for_the_co_submodel_alone():
    rows = report_of("control=none")["costs"]
    assert list(rows) == ["base", "cloud submodel", "co-submodel", "no control", "co alone"]
    # Beside the co-submodel: images of 8 x 8 pixels and ten logits of zero, for a batch of 20.
    held = rows["co-submodel"]["training_memory"] + 20 * 4 * (64 + 10)
    assert rows["co alone"] == {**rows["co-submodel"], "training_memory": held}


def test_without_control_a_shared_stem_still_comes_to_the_device():
    rows = report_of("control=none", "model.shared_stem=true")["costs"]
    assert rows["no control"]["parameters"] == 9 * 64 + 2 * 64
    assert rows["no control"]["exchanged_bytes"] == rows["no control"]["forward_macs"] == 0


def test_memory_follows_batch_size_and_momentum():
    base = report_of()["costs"]["co-submodel"]
    larger = report_of("rounds.device_batch_size=30")["costs"]["co-submodel"]
    plain = report_of("rounds.momentum=0")["costs"]["co-submodel"]
    assert larger["training_memory"] - base["training_memory"] == 10 * base["activation_bytes"]
    assert base["training_memory"] - plain["training_memory"] == 4 * base["trainable_parameters"]


def test_a_share_of_nothing_is_null(monkeypatch):
    def build(name, channels, classes, pretrained, seed, purpose, **_):
        if purpose == "base":
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        return build_model(name, channels, classes, pretrained, seed, purpose)

    monkeypatch.setattr("dccl_flower.models.build.build_model", build)
    conf = load_conf("digits", ["model.co.name=small_cnn"])
    shares = cost_report(conf)["share_of_base"]["co-submodel"]
    assert shares["batch_bytes"] is None
    assert shares["parameters"] == pytest.approx(260682 / 650)


def test_pretrained_weights_are_not_asked_for(monkeypatch):
    asked = []

    def build(name, in_channels, num_classes, pretrained, seed, purpose, **_):
        asked.append(pretrained)
        return build_model(name, in_channels, num_classes, False, seed, purpose)

    monkeypatch.setattr("dccl_flower.models.build.build_model", build)
    everything = ["model.pretrained=true", "model.co.pretrained=true"]
    cost_report(load_conf("digits", [*everything, "model.mimic.pretrained=true"]))
    assert set(asked) == {False}


def test_the_table_fits_a_narrow_terminal():
    lines = lines_of(report_of())
    assert all(len(line.rstrip()) <= 80 for line in lines)
    base = "base 261 k 1.05 MB 1.05 MB 5.94 M 35.5 M 111 kB 5.36 MB"
    assert row_of(lines, "base") == base
    shares = "share of base 3.4% 3.4% 1.7% 3.3% 2.2% 12.7% 8.1%"
    assert row_of(lines, "share of base") == shares


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.base=nope"], "model.base=nope: unknown model"),
        (["model.base=vgg16_cifar"], "model.base=vgg16_cifar: does not go with images (1, 8, 8)"),
        (["model.base=vgg16_cifar", "model.co.name=small_cnn"], "model.base=vgg16_cifar: does not"),
        (["model.co.name=vgg16_cifar"], "model.co.name=vgg16_cifar: does not go with images"),
        (["model.mimic.name=vgg16_cifar"], "model.mimic.name=vgg16_cifar: does not go with images"),
        (["model.base=timm/resnet18", "model.shared_stem=true"], "model.shared_stem=true: conv1"),
        (
            ["model.base=timm/vit_tiny_patch16_224", "model.co.name=small_cnn"],
            "model.base=timm/vit_tiny_patch16_224: does not go with images (1, 8, 8) (Calculated",
        ),
        (["data.path=/nowhere"], "data.path=/nowhere: no such folder"),
    ],
)
def test_an_impossible_model_is_one_line(overrides, message):
    with pytest.raises(ConfError) as caught:
        report_of(*overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_known_sets_are_counted_without_data(monkeypatch):
    monkeypatch.setattr(image_experiment, "open_images", None)
    report = cost_report(load_conf("paper"))
    assert (report["image"], report["classes"]) == ([3, 32, 32], 10)
    changes = ["data.rgb=true", "data.image_size=16"]
    assert cost_report(load_conf("digits", changes))["image"] == [3, 16, 16]


def test_the_command_prints_json():
    done = CliRunner().invoke(cli, ["cost", "digits", "model.co_ratio=0.25", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.output) == report_of("model.co_ratio=0.25")


def test_the_command_prints_the_table():
    done = CliRunner().invoke(cli, ["cost", "digits"])
    assert done.exit_code == 0
    assert row_of(done.output.splitlines(), "co + mimic").startswith("co + mimic 8.74 k 35.8 kB")
