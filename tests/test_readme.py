"""The README's commands are accepted as they are printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.experiment import check_devices, open_experiment

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = re.findall(r"^dccl run ((?!CONF|--resume)[^#\n]*)", README, flags=re.MULTILINE)


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_accepted(command):
    name, *overrides = [word for word in shlex.split(command) if not word.startswith("--")]
    conf = load_conf(name, [text for text in overrides if "PATH/TO" not in text])
    if conf.data.name == "digits":
        check_devices(open_experiment(conf))
