from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from small_worlds import small_world

from dccl_flower.config_loading import load_conf
from dccl_flower.method import find_method
from dccl_flower.simulations.cli import cli
from dccl_flower.simulations.serving_cost import serving_report, serving_table

OVERRIDES = ["adaptation.layers=2", "adaptation.partitions=4", "adaptation.batch_size=8"]


@pytest.fixture(scope="module")
def report():
    conf = load_conf("iciia_digits", OVERRIDES)
    return serving_report(conf, find_method("iciia").served)


def test_counts_by_hand(report):
    # small_cnn on 8x8: 64 and 64 channels, pooled, 128 and 128; then 128 features to ten classes.
    image = 64 * 9 * (64 + 64 * 64) + 16 * 9 * (64 * 128 + 128 * 128) + 1280
    attention = 2 * (6 * 8 * 128 * 128 // 4 + 2 * 8 * 8 * 128) + 8 * 1280
    costs, shares = report["costs"], report["share_of_first"]["adaptation"]
    assert costs["backbone"]["macs"] == 8 * image
    assert costs["adaptation"]["macs"] == attention
    assert costs["adaptation"]["parameters"] == 2 * (6 * 128 * 128 // 4 + 6 * 128 + 4 * 128) + 1290
    assert shares["macs"] == pytest.approx(attention / (8 * image))
    assert all(cost["milliseconds"] > 0 for cost in costs.values())


def test_threads_are_as_they_were(report):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        conf = load_conf("iciia_digits", [*OVERRIDES, "runtime.threads=1"])
        serving_report(conf, find_method("iciia").served)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_table_has_a_line_a_module(report):
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(serving_table(report))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert "iciia_digits, a batch of 8 samples" in lines[0]
    assert [line.split()[1] for line in lines if "%" in line] == ["backbone", "adaptation"]


def test_the_command_prints_either(report):
    found = CliRunner().invoke(cli, ["cost", "iciia_digits", *OVERRIDES, "--json"])
    assert (
        json.loads(found.output)["costs"]["adaptation"]["macs"]
        == (report["costs"]["adaptation"]["macs"])
    )


def test_a_recommender_is_measured_with_patches_and_without():
    conf = small_world("dccl_world", "adaptation.rank=4").conf
    report = serving_report(conf, find_method("metapatch").served)
    assert report["batch_size"] == 16
    model, patched = (report["costs"][name] for name in ("model", "patched"))
    # Bottlenecks of 8 beside hidden layers of 8 and 4.
    assert patched["macs"] - model["macs"] >= 16 * (2 * 8 * 8 + 2 * 8 * 4)
    weights = (2 * 8 * 8 + 8 + 8) + (2 * 4 * 8 + 8 + 4)
    assert patched["parameters"] - model["parameters"] == 4 + 4 * weights
