"""On a Ray cluster that is there already: what each node is asked first, and the same numbers."""

from __future__ import annotations

import sys

import pytest
from ray.cluster_utils import Cluster
from real_runs import SMALL, dccl, hash_in_process, model_hash

from dccl_flower.config_loading import dump_conf, load_conf
from dccl_flower.files import code_digest
from dccl_flower.simulations.app.run_folder import CONF_FILE
from dccl_flower.simulations.run.cluster import check_cluster, lacks
from dccl_flower.simulations.run.runner import federation
from dccl_flower.simulations.superlink import RunError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / CONF_FILE).write_text(dump_conf(load_conf("digits")))
    return tmp_path


def told(folder, digest=None):
    return lacks(str(folder), CONF_FILE, digest or code_digest())


def test_a_node_with_package_folder_and_data_lacks_nothing(folder):
    assert told(folder) == ""


def test_a_node_says_what_it_lacks(folder, monkeypatch):
    assert told(folder, "other") == "has another version of dccl-flower"
    assert told(folder / "elsewhere").startswith(f"cannot write to {folder}/elsewhere: the run dir")
    gone = load_conf("digits", [f"data.path={folder}/gone"])
    (folder / CONF_FILE).write_text(dump_conf(gone))
    assert told(folder) == f"cannot open the data: data.path={folder}/gone: no such folder"
    monkeypatch.setitem(sys.modules, "dccl_flower.config_loading", None)
    assert told(folder).startswith("has no dccl-flower (import of dccl_flower.config_loading")


def test_a_cluster_has_its_own_cpus_and_gpus():
    conf = load_conf("digits", ["runtime.workers=3", "runtime.threads=2"])
    here, there = federation(conf), federation(conf, on_cluster=True)
    assert here["init-args-num-cpus"] == 6
    assert there == {name: here[name] for name in here if not name.startswith("init-args-num")}
    assert there["client-resources-num-cpus"] == 2
    conf.runtime.gpu = True
    assert "init-args-num-gpus" in federation(conf)
    assert "init-args-num-gpus" not in federation(conf, on_cluster=True)


@pytest.fixture(scope="module")
def cluster():
    """Two Ray nodes on this machine, each with room for one worker."""
    one = {"num_cpus": 1, "include_dashboard": False}
    both = Cluster(initialize_head=True, head_node_args=one)
    try:
        both.add_node(num_cpus=1)
        yield both.address
    finally:
        both.shutdown()


@pytest.mark.slow
def test_two_ray_nodes_end_as_one_process_does(cluster, tmp_path):
    keeping = [*SMALL, "rounds.keep_momentum=true", "wire.codec=int8"]
    done = dccl("digits", *keeping, "--ray-address", cluster, "--output", "there", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Ray's cluster has 2 nodes" in done.stdout
    here = hash_in_process(tmp_path, "co_submodel", *keeping)
    assert model_hash(tmp_path / "there", "co_submodel") == here


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "", "127.0.0.1:x", "a b:1", ":"])
def test_an_address_where_nobody_answers_is_told_at_once(folder, address):
    with pytest.raises(RunError, match=f"^--ray-address {address}: "):
        check_cluster(address, folder)
