from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import dccl_flower

PACKAGES = ("learning", "models", "data")
PROBE = """
import importlib, json, sys

def flower():
    return {name for name in sys.modules if name == "flwr" or name.startswith("flwr.")}

found = {}
for name in json.loads(sys.argv[1]):
    before = flower()
    importlib.import_module(name)
    found[name] = sorted(flower() - before)
print(json.dumps(found))
"""


def modules_without_flower():
    names = []
    for package in PACKAGES:
        home = import_module(f"dccl_flower.{package}")
        names.append(home.__name__)
        names += [f"{home.__name__}.{found.name}" for found in pkgutil.iter_modules(home.__path__)]
    return names


def flower_modules_brought_in(names, folder):
    """Import modules in order in a fresh interpreter; return what of Flower each brought in."""
    command = [sys.executable, "-c", PROBE, json.dumps(names)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def brought_in(tmp_path_factory):
    return flower_modules_brought_in(modules_without_flower(), tmp_path_factory.mktemp("probe"))


@pytest.mark.parametrize("name", modules_without_flower())
def test_kernels_models_and_data_load_without_flower(brought_in, name):
    assert brought_in[name] == []


def test_the_modules_looked_at_are_those_of_the_package():
    names = modules_without_flower()
    assert len(names) == len(set(names)) > 15
    assert {"dccl_flower.learning.fusion", "dccl_flower.models.split"} <= set(names)


def test_the_package_alone_loads_without_flower_and_the_probe_would_see_it(tmp_path):
    found = flower_modules_brought_in(["dccl_flower", "flwr"], tmp_path)
    assert found["dccl_flower"] == []
    assert "flwr" in found["flwr"]


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("Cloud", "dccl_flower.strategies.dc_ccl.cloud"),
        ("DcCclClient", "dccl_flower.strategies.dc_ccl.front"),
        ("numpy_client_app", "dccl_flower.flower.numpy_client_app"),
    ],
)
def test_lazy_exports_are_the_objects_of_their_modules(name, home):
    assert getattr(dccl_flower, name) is getattr(import_module(home), name)
    assert name in dir(dccl_flower)


def test_exports_can_be_imported_by_name():
    from dccl_flower import Cloud, DcCclClient, numpy_client_app

    assert [Cloud.__name__, DcCclClient.__name__] == ["Cloud", "DcCclClient"]
    assert callable(numpy_client_app)


def test_a_star_import_gives_all_that_is_listed():
    names = {}
    exec("from dccl_flower import *", names)
    assert set(dccl_flower.__all__) <= names.keys()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Clod'"):
        dccl_flower.Clod  # noqa: B018
