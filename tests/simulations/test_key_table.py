"""What there is to run and to set is told in a line each."""

from __future__ import annotations

import pytest
from click import Context
from click.testing import CliRunner

from dccl_flower.config import ConfError
from dccl_flower.config_loading import conf_names, load_conf
from dccl_flower.simulations.cli import cli
from dccl_flower.simulations.commands.options import confs_like, keys_like
from dccl_flower.simulations.key_table import conf_lines, key_rows


def test_each_configuration_says_in_one_line_what_it_is():
    told = dict(conf_lines())
    assert list(told) == conf_names()
    assert all(10 < len(text) < 250 and "\n" not in text for text in told.values())
    assert told["digits"] == (
        "scikit-learn's bundled digits: classes 0-7 on the cloud, 8-9 on ten devices"
    )


def test_keys_come_with_value_and_what_is_allowed():
    rows = {key: (value, allowed) for key, value, allowed in key_rows("digits")}
    assert rows["rounds.count"] == (str(load_conf("digits").rounds.count), "integer, at least 1")
    assert rows["runtime.gpu"] == ("false", "true or false")
    assert rows["wire.codec"] == ("fp32", "fp32 | fp16 | int8 | named")
    assert rows["devices.deadline"] == ("null", "number or null, above 0")
    assert rows["split.cloud_classes"][1] == "list of integer or text or rest"


@pytest.mark.parametrize("name", conf_names())
def test_every_listed_key_can_be_set_to_its_own_value(name):
    for key, value, _ in key_rows(name):
        assert load_conf(name, [f"{key}={value}"]).name == load_conf(name).name, key


def test_a_part_of_a_key_selects():
    assert {key for key, _, _ in key_rows("digits", "DATA.")} == {
        key for key, _, _ in key_rows("digits") if key.startswith("data.")
    }
    with pytest.raises(ConfError, match="expected one of"):
        key_rows("no_such")


def test_the_commands_print_tables():
    run = CliRunner().invoke
    assert "private_digits" in run(cli, ["confs"]).output
    assert "[privacy]" in run(cli, ["confs"]).output
    assert "rounds.count" in run(cli, ["keys", "digits", "rounds"]).output
    markdown = run(cli, ["keys", "digits", "seed", "--markdown"]).output
    assert markdown.splitlines()[2] == "| `seed` | `0` | integer, at least 0 |"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("round.count", "rounds.count"),
        ("rounds.coutn", "rounds.count"),
        ("local_steps", "rounds.local_steps"),
        ("data.imagecolumn", "data.image_column"),
    ],
)
def test_a_near_miss_is_told_what_was_meant(given, meant):
    with pytest.raises(ConfError) as caught:
        load_conf("digits", [f"{given}=3"])
    assert str(caught.value).startswith(f"{given}: unknown key; did you mean {meant}? ")


def test_a_shell_completes_configurations_and_keys():
    context = Context(cli.commands["run"])
    assert confs_like(context, None, "dig") == ["digits"]
    context.params["conf"] = "dccl_world"
    assert keys_like(context, None, "cloud.le") == ["cloud.learns="]
    context.params["conf"] = "no_such"
    assert keys_like(context, None, "") == []
