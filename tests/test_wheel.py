"""What the wheel holds, and that it works away from the source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "dccl_flower": "dccl_flower",
    "conf": "dccl_flower/conf",
    "strategies": "dccl_flower/strategies",
    "simulations": "dccl_flower/simulations",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy, so that no stale build folder gets in."""
    copy = tmp_path_factory.mktemp("source")
    for name in [*SOURCES, "pyproject.toml", "README.md", "LICENSE"]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel):
    expected = set()
    for folder, target in SOURCES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"{target}/{path.relative_to(ROOT / folder)}")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {name.split("/")[0] for name in names} == {"dccl_flower"}
    assert "dccl_flower/strategies/dc_ccl/method.py" in names
    assert "dccl_flower/conf/digits.yaml" in names
    assert "dccl_flower/py.typed" in names


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the programs of an environment that has the wheel alone."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(home, with_pip=True)
    pip = [home / "bin" / "pip", "install", "--quiet"]
    subprocess.run([*pip, "torch", "torchvision"], check=True)
    subprocess.run([*pip, wheel], check=True)
    return home / "bin"


@pytest.mark.slow
def test_the_installed_wheel_runs_from_any_directory(installed, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [installed / "dccl", "run", "digits", "rounds.count=1", "--output", "out"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "out" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("project", ["quickstart/plain", "quickstart/with_dc_ccl"])
def test_an_example_runs_by_plain_flwr_run(installed, tmp_path, project):
    place = shutil.copytree(ROOT / "examples" / project, tmp_path / "project")
    home = {"FLWR_HOME": str(tmp_path / "flwr"), "DCCL_CACHE": str(tmp_path / "cache")}
    home["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | home
    environment["PATH"] = f"{installed}{os.pathsep}{environment['PATH']}"
    command = [installed / "flwr", "run", ".", "--stream"]
    try:
        done = subprocess.run(
            command, cwd=place, env=environment, check=True, capture_output=True, text=True
        )
    finally:
        end_processes(home["FLWR_HOME"])
    told = done.stdout.rpartition("ServerApp-side Evaluate Metrics")[2]
    scores = [float(score) for score in re.findall(r"\d+: {'accuracy': '(.*?)'", told)]
    assert len(scores) == 11
    if "dc_ccl" in project:
        assert scores[-1] > scores[0] + 0.05, scores


def end_processes(flwr_home):
    """End what Flower left running for one home: its SuperLink stays for the next run."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == flwr_home:
                process.terminate()
