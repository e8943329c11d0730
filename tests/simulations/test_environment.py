"""The environment of child processes, from what users have in theirs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from dccl_flower.config import ConfError
from dccl_flower.simulations import environment
from dccl_flower.simulations.environment import LONGEST_RAY_FOLDER, child_environment


@pytest.fixture
def given(monkeypatch):
    """Return a setter of the user's variables; Python's temporary folder is found anew."""

    def give(**variables):
        monkeypatch.setattr(tempfile, "tempdir", None)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return child_environment()

    return give


@pytest.mark.parametrize(
    "name",
    [
        *("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RUNTIME_ENV_HOOK", "RAY_USE_TLS"),
        *("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_DATABASE", "MPLBACKEND"),
        *("PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONINSPECT", "OMP_NUM_THREADS"),
    ],
)
def test_what_points_elsewhere_or_changes_the_run_is_dropped(given, name):
    assert name not in given(**{name: "1"})


@pytest.mark.parametrize(
    "name",
    [
        *("CUDA_VISIBLE_DEVICES", "RAY_max_direct_call_object_size", "LD_LIBRARY_PATH"),
        *("HF_HOME", "LC_ALL", "OMP_WAIT_POLICY", "PYTHONHASHSEED"),
    ],
)
def test_what_is_the_users_to_choose_stays(given, name):
    assert given(**{name: "1"})[name] == "1"


def test_downloads_keep_their_proxy_and_loopback_goes_without(given, monkeypatch):
    child = given(
        https_proxy="http://proxy.example:3128",
        HTTP_PROXY="proxy.example:3128",
        ALL_PROXY="socks5://proxy.example:1080",
        no_proxy="[::1],.example",
    )
    assert child["https_proxy"] == "http://proxy.example:3128"
    assert child["HTTP_PROXY"] == "proxy.example:3128"
    assert "ALL_PROXY" not in child
    assert child["no_proxy"] == child["NO_PROXY"] == "::1,.example,127.0.0.1,localhost"
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in [name for name in child if name.lower().endswith("_proxy")]:
        monkeypatch.setenv(name, child[name])
    httpx.Client().close()  # as Flower makes it: fails for a proxy or a host that it cannot read


def test_a_star_without_proxies_stays_alone(given):
    assert given(no_proxy="*")["no_proxy"] == "*"


def test_modules_and_commands_are_found_from_another_directory(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    child = given(PYTHONPATH=f"lib{os.pathsep}/opt/lib", PATH="")
    assert child["PYTHONPATH"] == f"{tmp_path / 'lib'}{os.pathsep}/opt/lib"
    assert child["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"


def test_an_empty_module_path_does_not_become_the_working_directory(given):
    assert given(PYTHONPATH="")["PYTHONPATH"] == ""


def test_ray_gets_a_short_folder_where_the_users_is_too_long(given, tmp_path):
    deep = tmp_path / ("d" * LONGEST_RAY_FOLDER)
    deep.mkdir(parents=True)
    child = given(TMPDIR=deep)
    assert child["TMPDIR"] == str(deep)
    assert child["RAY_TMPDIR"] == "/tmp"


def test_ray_keeps_the_folder_that_was_chosen_for_it(given):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        assert given(RAY_TMPDIR=short)["RAY_TMPDIR"] == short
        assert given(TMPDIR=short, RAY_TMPDIR="/nowhere")["RAY_TMPDIR"] == short


def test_a_missing_temporary_folder_is_passed_over(given):
    child = given(TMPDIR="/nowhere/at/all")
    assert child["TMPDIR"] != "/nowhere/at/all"
    assert Path(child["TMPDIR"]).is_dir()


def test_no_short_folder_is_one_line_that_names_tmpdir(given, monkeypatch):
    monkeypatch.setattr(environment, "_ray_folders", lambda usual: iter(["/" + "d" * 99]))
    with pytest.raises(ConfError, match=r"^TMPDIR=.*: too long for Ray's sockets; .* 35 bytes$"):
        given()


def test_a_child_of_a_child_gets_the_same(given, monkeypatch):
    once = given(no_proxy=".example", RAY_TMPDIR="/tmp")
    for name, value in once.items():
        monkeypatch.setenv(name, value)
    twice = child_environment()
    assert {**twice, "PATH": once["PATH"]} == once
