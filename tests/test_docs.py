"""What README and docs say to type is accepted as it is printed."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.cli import cli
from dccl_flower.simulations.experiment import check_devices, open_experiment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("examples/*/*.md")]
WITH_CONF = ("run", "arms", "sweep", "search", "cost", "keys")
TO_FILL_IN = re.compile(r"\[[a-z-]|\.\.\.|\b[A-Z]+=V1")  # [--option], RUN_DIR..., KEY=V1
Command = tuple[str, str]


def commands() -> list[Command]:
    """Return page and text of each command in a block of shell, comments left out."""
    found = []
    for page in PAGES:
        for block in re.findall(
            r"^ *```bash\n(.*?)```", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            found += [(page.name, line.partition(" #")[0].strip()) for line in lines]
    return [(page, line) for page, line in dict.fromkeys(found) if line]


COMMANDS = commands()
OURS = [(page, line) for page, line in COMMANDS if line.startswith("dccl ")]
FILLED_IN = [(page, line) for page, line in OURS if not TO_FILL_IN.search(line)]


def starting(word: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for _, line in COMMANDS if line.startswith(f"{word} ")]


def test_pages_have_commands():
    assert len(FILLED_IN) >= 60
    assert {page for page, _ in OURS} >= {"README.md", "comparing.md", "coda.md"}


@pytest.mark.parametrize(("page", "line"), FILLED_IN)
def test_options_and_arguments_are_those_of_the_command(page, line):
    _, name, *words = shlex.split(line)
    command = cli.commands[name]
    command.make_parser(click.Context(command)).parse_args(list(words))
    given = [word for word in words if re.match(r"[a-z_.]+=", word)]
    if name in WITH_CONF and not words[0].startswith("--") and words[0] != "CONF":
        check_conf(name, words[0], given[1:] if name == "sweep" else given)


def check_conf(name: str, conf_name: str, overrides: list[str]) -> None:
    if "/" in conf_name:
        return
    values = [text for text in overrides if "PATH/TO" not in text and "RUN_DIR" not in text]
    conf = load_conf(conf_name, values)
    if name == "run" and conf.data.name == "digits":
        check_devices(open_experiment(conf))


def test_targets_of_make_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for target, *_ in starting("make"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_modules_and_test_files_are_there():
    for words in starting("python"):
        assert words[0] == "-m"
        assert find_spec(words[1]), words
    for words in starting("pytest"):
        assert (ROOT / words[-1]).exists(), words
