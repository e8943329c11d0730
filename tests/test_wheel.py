"""What the wheel holds, and that it works away from the source."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

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


@pytest.mark.slow
def test_the_installed_wheel_runs_from_any_directory(wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    pip = [home / "bin" / "pip", "install", "--quiet"]
    subprocess.run([*pip, "torch", "torchvision"], check=True)
    subprocess.run([*pip, wheel], check=True)
    place = tmp_path / "elsewhere"
    place.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [home / "bin" / "dccl", "run", "digits", "rounds.count=1", "--output", "out"]
    subprocess.run(command, cwd=place, env=environment, check=True)
    assert (place / "out" / "results.json").exists()
