"""``dccl split`` tells what the halves of models are, and which cannot be cut."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from dccl_flower.config import ConfError
from dccl_flower.simulations.cli import cli
from dccl_flower.simulations.split_report import parse_ratio, split_model


def lines_of(*arguments):
    done = CliRunner().invoke(cli, ["split", *arguments])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_the_halves_of_a_model_are_counted():
    header, _, base, cloud, co = lines_of("small_cnn", "--ratio", "1/4", "--classes", "7")
    assert header == "| model | part | parameters | of the base | MACs an image | gives |"
    assert base.startswith("| `small_cnn` | base | ")
    assert all(row.endswith(" | 7 |") for row in (base, cloud, co))
    halves = split_model("small_cnn", 1 / 4, 7)
    assert halves["co"].parameters < halves["cloud"].parameters < halves["base"].parameters
    assert f"| {halves['co'].parameters:,} |" in co


def test_of_several_models_those_that_cannot_be_cut_have_the_reason():
    first, _, *rows = lines_of("small_cnn", "timm/ghostnet_050", "--size", "32")
    assert first == "1 of 2 can be cut."
    assert rows[-1].startswith("| `timm/ghostnet_050` | model.base=timm/ghostnet_050: cannot be ")


@pytest.mark.parametrize("text", ["0", "1", "3/2", "1/0", "some"])
def test_a_ratio_lies_between_0_and_1(text):
    with pytest.raises(ConfError, match=r"must lie between 0 and 1, as 1/8 or 0\.125 does"):
        parse_ratio(text)
