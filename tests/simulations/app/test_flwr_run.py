"""Plain ``flwr run``: of this app with five methods, and of the example project.

One of the runs has been stopped in a process of its own, and goes on here.
"""

from __future__ import annotations

import json
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from real_runs import (
    BIN,
    FEW,
    SMALL,
    assert_the_mimic_went_once_to_each_device,
    environment,
    hash_in_process,
    model_hash,
    results_of,
    run_in_process,
)
from stopped_runs import stop

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
HETEROFL = [*FEW, "method.name=heterofl", "devices.profiles=phones_two_widths"]
HETEROFL.append("rounds.min_replies=0.25")
MOST_UP = 1000  # bytes of three counts and the message around them
ICIIA = ["devices.count=5", "pretrain.epochs=1", "adaptation.epochs=1", "data.train_fraction=0.5"]
USERS = ["devices.count=6", "data.world.users=100", "data.world.items=50", "pretrain.epochs=1"]
STOPPED = "heterofl"
RUNS = {
    "bare": ("digits", SMALL),
    "heterofl": ("digits", HETEROFL),
    "iciia": ("iciia_digits", ICIIA),
    "metapatch": ("dccl_world", [*USERS, "rounds.count=2", "method.serves=cloud"]),
    "coda": ("coda_world", USERS),
}


@pytest.fixture(scope="module")
def by_flwr(tmp_path_factory):
    """Plain ``flwr run .``, bare (two nodes, one worker), of five methods; then the example."""
    home = tmp_path_factory.mktemp("flwr")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = environment(
        FLWR_HOME=str(home),
        FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=port,
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            stop(*RUNS[STOPPED], home / STOPPED, turns=5, patch=patch)
        for name, (conf, changes) in RUNS.items():
            run_config = f"conf='{conf}' overrides='{' '.join(changes)}' output='{home / name}'"
            if name == STOPPED:
                run_config = f"resume='{home / name}'"
            command = [BIN / "flwr", "run", ".", "--stream", "--run-config", run_config]
            done = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
            )
            assert (home / name / "results.json").exists(), done.stdout[-3000:]
        command = [BIN / "flwr", "run", ".", "--stream", "--run-config"]
        command.append(f"output='{home / 'example.json'}'")
        place = ROOT / "examples" / "own_project"
        subprocess.run(command, cwd=place, env=env, capture_output=True, check=False)
        yield home
    finally:
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if any("flower-superlink" in part for part in line) and port in line:
                for each in [*process.children(recursive=True), process]:
                    with suppress(psutil.NoSuchProcess):  # it may have ended by itself
                        each.terminate()


def test_the_mimic_goes_once_to_each_distinct_device(by_flwr):
    assert_the_mimic_went_once_to_each_device(by_flwr / "bare")


@pytest.mark.parametrize(
    ("name", "role", "changes"),
    [("bare", "co_submodel", SMALL), ("heterofl", "model", HETEROFL)],
)
def test_nodes_and_workers_do_not_change_the_weights(by_flwr, tmp_path, name, role, changes):
    assert model_hash(by_flwr / name, role) == hash_in_process(tmp_path, role, *changes)


def test_iciia_s_devices_get_models_once_and_send_up_what_is_right(by_flwr, tmp_path):
    results = results_of(by_flwr / "iciia")
    assert_scores_as_here(results, tmp_path, "iciia")
    wire, scored = results["wire"], len(results["rounds"][0]["devices"])
    for role in ("backbone", "adaptation"):
        size = (by_flwr / "iciia" / "models" / f"{role}.safetensors").stat().st_size
        assert wire[f"{role}_down"] == scored * size
    assert sum(size for kind, size in wire.items() if kind.endswith("_up")) < scored * MOST_UP


def test_of_users_vectors_or_keys_come_up_and_scores_as_in_process(by_flwr, tmp_path):
    for name, kinds in {"metapatch": {"vector_up"}, "coda": {"keys_up"}}.items():
        results = results_of(by_flwr / name)
        assert_scores_as_here(results, tmp_path, name)
        up = {kind for kind in results["wire"] if kind.endswith("_up")}
        assert up == kinds | {"scores_up", "other_up"}


def assert_scores_as_here(results, place, name):
    conf, changes = RUNS[name]
    here = results_of(run_in_process(place, *changes, conf=conf))
    for key in ("final", "references", "devices"):
        assert results.get(key) == here.get(key)


def test_the_example_project_learns_its_device_classes(by_flwr):
    rounds = json.loads((by_flwr / "example.json").read_text())
    assert rounds["0"]["accuracy-device-classes"] < 0.05
    assert rounds["15"]["accuracy-device-classes"] > 0.2
    assert rounds["15"]["accuracy"] > rounds["0"]["accuracy"] + 0.02


def test_a_stopped_run_goes_on_after_its_last_complete_round(by_flwr):
    events = (by_flwr / STOPPED / "events.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in events]
    assert [event["round"] for event in told if event["event"] == "round"] == [1, 2, 3]
    notes = [event["text"] for event in told if event["event"] == "note"]
    assert any("goes on after round 1" in note for note in notes)
