"""A federation as on real machines: it ends as the simulation does, and lets no stranger in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import psutil
import pytest
from real_runs import environment, model_hash

from dccl_flower.simulations.deploy import demo
from dccl_flower.simulations.deploy.credentials import make_certificates, make_node_key
from dccl_flower.simulations.deploy.supernode import SuperNode, cause_of_exit
from dccl_flower.simulations.superlink import RunError, SuperLink, choose_port

PATIENCE = 60.0


def results(first, last, cohort=(1, 2)):
    rounds = [
        {"round": number, "accuracy": score, "devices": list(cohort)}
        for number, score in enumerate((first, last), 1)
    ]
    references = {"cloud": {"accuracy": 0.25}}
    return {"final": {"accuracy": last}, "rounds": rounds, "references": references}


def test_two_runs_are_as_far_apart_as_the_scores_that_differ_most():
    assert demo.largest_difference(results(0.5, 0.75), results(0.5, 0.75)) == 0
    assert demo.largest_difference(results(0.5, 0.75), results(0.625, 0.5)) == 0.25
    other = {**results(0.5, 0.75), "references": {"cloud": {"accuracy": 0.75}}}
    assert demo.largest_difference(results(0.5, 0.75), other) == 0.5
    with pytest.raises(RunError, match="not the same scores"):
        demo.largest_difference(results(0.5, 0.75), {**results(0.5, 0.75), "references": {}})


def test_a_failure_and_scores_that_differ_are_one_line(tmp_path, monkeypatch):
    def fail(folder, display):
        raise RunError("the SuperLink has died")

    monkeypatch.setattr(demo, "run_demo", fail)
    with pytest.raises(SystemExit, match=r"^deploy-demo: the SuperLink has died$"):
        demo.main([str(tmp_path)])
    monkeypatch.setattr(demo, "run_demo", lambda folder, display: 1e-5)
    with pytest.raises(SystemExit, match=r"^deploy-demo: expected at most 1e-06$"):
        demo.main([str(tmp_path)])


def test_a_supernode_s_log_tells_why_it_ended():
    lines = [
        "INFO: Starting",
        "ERROR :  Exit Code: 305",
        "No connection.",
        " [code: 2004] Failed. ",
    ]
    assert cause_of_exit("\n".join([*lines, "INFO: Shutting down"])) == (
        "No connection. [code: 2004] Failed."
    )
    assert cause_of_exit("INFO: Starting\n") == "no cause in its log"


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    """A SuperLink with a certificate, its port, and its certificates' folder."""
    place = tmp_path_factory.mktemp("link")
    certificates, port = make_certificates(place / "keys"), choose_port(None)
    with SuperLink(place, place / "log", port, certificates=certificates) as running:
        yield running, port, certificates.authority


def why_it_ended(node):
    for _ in range(int(PATIENCE / 0.2)):
        try:
            node.check()
        except RunError as error:
            return str(error)
        time.sleep(0.2)
    return "it has not ended"


@pytest.mark.integration
def test_who_has_no_registered_key_or_another_authority_is_refused(link, tmp_path):
    running, port, authority = link
    known, public = make_node_key(tmp_path, "known")
    stranger, _ = make_node_key(tmp_path, "stranger")
    running.register(public)
    other = make_certificates(tmp_path / "other").authority
    with ExitStack() as nodes:

        def start(name, trusted, key):
            node = SuperNode(tmp_path / f"{name}-home", port, trusted, key, (0, 1))
            return nodes.enter_context(node)

        first = start("known", authority, known)
        assert "Failed to activate SuperNode" in why_it_ended(
            start("stranger", authority, stranger)
        )
        assert "CERTIFICATE_VERIFY_FAILED" in why_it_ended(start("misled", other, known))
        first.check()
        assert "SuperNode ID" in first.log_path.read_text()


def start_demo(folder, temporary):
    temporary.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "dccl_flower.simulations.deploy.demo", folder],
        env=environment(TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_deployed_it_ends_as_it_does_simulated(tmp_path):
    process = start_demo(tmp_path / "runs", tmp_path / "t")
    told, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "deployed and simulated: the same devices, scores at most 0.0e+00 apart" in told
    both = [tmp_path / "runs" / name for name in ("deployed", "simulated")]
    assert len({model_hash(folder, "co_submodel") for folder in both}) == 1
    assert os.listdir(tmp_path / "t") == []


@pytest.mark.slow
def test_interrupted_it_leaves_no_process_and_no_key(tmp_path):
    process = start_demo(tmp_path / "runs", tmp_path / "t")
    for line in process.stdout:
        if "SuperNodes" in line:
            break
    time.sleep(5)  # for one or two of them to be up
    started = psutil.Process(process.pid).children(recursive=True)
    assert any("flower-supernode" in " ".join(each.cmdline()) for each in started)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (1, "deploy-demo: interrupted\n")
    psutil.wait_procs(started, timeout=10)
    assert [each for each in started if each.is_running()] == []
    assert os.listdir(tmp_path / "t") == []
