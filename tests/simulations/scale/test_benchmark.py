from __future__ import annotations

import json
import os

import pytest

from dccl_flower.simulations.scale import benchmark as scale
from dccl_flower.simulations.scale.benchmark import Measurement, round_costs, run_scale
from dccl_flower.simulations.scale.cases import BARE, DCCL, FLOWER, PFL, Case, Settings, case_conf
from dccl_flower.simulations.scale.display import ScaleDisplay
from dccl_flower.simulations.scale.workload import RoundCost
from dccl_flower.simulations.superlink import RunError

SETTINGS = Settings(devices=(5,), workers=(1,), cohort=3, rounds=3, skip=frozenset({"reference"}))


class LinearMeter:
    """Two CPU-seconds a second since the epoch."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def cpu_at(self, moment):
        return 2 * moment

    def peak_mb(self, group):
        return {"driver": 900.0, "ray": 700.0}[group]

    def largest_mb(self, group):
        return 400.0


def event(number, at, devices, seconds=4.0):
    return {
        "event": "round",
        "round": number,
        "time": at,
        "seconds": seconds,
        "devices": devices,
        "bytes_down": 60,
        "bytes_up": 30,
    }


EVENTS = [event(1, 104.0, [0, 1, 2]), event(2, 107.0, [1, 2, 3]), event(3, 109.0, [0, 1, 2])]


def measurement(system, tmp_path, control="mimic", overrides=()):
    case = Case(system, control, 5, 3, 1)
    conf = case_conf(case, "digits", list(overrides), SETTINGS)
    return Measurement(case, conf, tmp_path / "run", None, ScaleDisplay(1))


@pytest.fixture
def metered():
    """The processes that a meter was started for."""
    return []


@pytest.fixture
def flower(monkeypatch, metered):
    """A run through Flower that leaves a device's file in its store and tells of three rounds."""
    runs = []

    def run(conf, folder, port, display, app, listener):
        runs.append((conf, app))
        folder.mkdir(parents=True)
        (scale.Path(conf.devices.store) / "devices").mkdir()
        for name, moment in (("mimic", 1012.5), ("later", 1020.0)):
            path = scale.Path(conf.devices.store) / "devices" / name
            path.touch()
            os.utime(path, (moment, moment))
        for each in [{"event": "started"}, *EVENTS]:
            listener(each, 42)

    def meter(pid):
        metered.append(pid)
        return LinearMeter()

    monkeypatch.setattr(scale, "ProcessMeter", meter)
    monkeypatch.setattr(scale, "run_simulation", run)
    monkeypatch.setattr(scale.time, "time", lambda: 1000.0)
    return runs


def test_a_round_costs_what_passed_since_the_one_before():
    costs = round_costs(EVENTS, LinearMeter())
    assert costs == [
        RoundCost(cpu=8.0, wall=4.0, turns=3, new=3, bytes=90),
        RoundCost(cpu=6.0, wall=3.0, turns=3, new=1, bytes=90),
        RoundCost(cpu=4.0, wall=2.0, turns=3, new=0, bytes=90),
    ]


def test_stock_flower_tells_turns_instead_of_devices():
    plain = {**EVENTS[0], "turns": 7}
    del plain["devices"]
    (cost,) = round_costs([plain], LinearMeter())
    assert (cost.turns, cost.new) == (7, 0)


def test_a_run_through_flower_becomes_a_row(flower, tmp_path):
    (row,) = measurement(DCCL, tmp_path).rows()
    assert row["title"] == "DC-CCL, 5 devices, 1 worker"
    assert row["first"]["cpu_s"] == pytest.approx(8 / 3)
    assert row["later"]["cpu_s"] == pytest.approx(10 / 6)
    assert row["later"]["bytes"] == pytest.approx(30)
    assert row["turns_per_s"] == pytest.approx(6 / 5)
    assert (row["driver_mb"], row["worker_mb"], row["ray_mb"]) == (900, 400, 700)
    assert row["seconds_to_first_turn"] == pytest.approx(12.5)
    assert len(row["rounds"]) == 3
    assert json.loads(json.dumps(row)) == row


def test_ours_is_tuned_and_stock_flower_is_as_it_comes(flower, tmp_path):
    for system in (DCCL, FLOWER):
        measurement(system, tmp_path, "none").rows()
    assert [app.tuned for _, app in flower] == [True, False]
    assert "scale.flower" in flower[1][1].server
    assert not scale.Path(flower[0][0].devices.store).exists()


@pytest.mark.parametrize(
    ("control", "overrides", "share"),
    [
        ("mimic", ["runtime.cache_logits=true"], 1 / 6),
        ("mimic", ["runtime.cache_logits=false"], 1.0),
        ("mimic", ["data.augment=flip_crop"], 1.0),
        ("none", [], 0.0),
    ],
)
def test_the_mimic_computes_only_for_new_devices_where_logits_are_cached(
    control, overrides, share, flower, tmp_path
):
    (row,) = measurement(DCCL, tmp_path, control, overrides).rows()
    assert row["mimic_share"] == pytest.approx(share)


def test_pfl_that_is_not_installed_is_said_so(monkeypatch, tmp_path):
    monkeypatch.setattr(scale, "is_installed", lambda: False)
    (row,) = measurement(PFL, tmp_path, "none").rows()
    assert row["note"] == "not installed: pip install -r requirements-bench.txt"


def test_a_failure_is_a_row_that_tells_the_cause(monkeypatch, tmp_path):
    def fail(*_):
        raise RunError("device 3 has died (log: x)")

    monkeypatch.setattr(scale, "run_simulation", fail)
    (row,) = measurement(FLOWER, tmp_path, "none").rows()
    assert row["error"] == "device 3 has died (log: x)"
    assert "later" not in row


def test_a_job_that_fails_is_a_row_with_its_log(monkeypatch, tmp_path):
    monkeypatch.setattr(scale, "LOOPS", {BARE: "no_such_module:measure"})
    monkeypatch.setattr(scale.Measurement, "_run_job", no_preparation(Measurement._run_job))
    (row,) = measurement(BARE, tmp_path, "none").rows()
    log = tmp_path / "run" / "measure" / "job.log"
    cause = "ModuleNotFoundError: No module named 'no_such_module'"
    assert row["error"] == f"{cause} (log: {log})"
    assert "Traceback" in log.read_text()


def no_preparation(run_job):
    def run(self, function, **facts):
        return None if function == scale.PREPARE else run_job(self, function, **facts)

    return run


def test_the_first_event_starts_the_meter_of_the_process_below_which_all_runs(
    flower, metered, tmp_path
):
    (row,) = measurement(DCCL, tmp_path).rows()
    assert metered == [42]
    assert len(row["rounds"]) == len(EVENTS)


def measured(case, cpu=0.1):
    turn = {"cpu_s": cpu, "wall_s": cpu, "bytes": 0.0, "new_share": 0.0, "turns": 3}
    facts = {"system": case.system, "control": case.control, "devices": case.devices}
    facts |= {"cohort": case.cohort, "workers": case.workers, "title": case.title}
    facts |= {"turns_per_s": 1 / cpu, "mimic_share": 0.0, "seconds_to_first_turn": 1.0}
    return {**facts, "first": turn, "later": turn, "worker_mb": 100.0}


def test_everything_is_written_after_each_measurement(monkeypatch, tmp_path):
    seen = []

    def rows(self):
        path = tmp_path / "scale.json"
        seen.append(len(json.loads(path.read_text())["rows"]) if path.exists() else 0)
        return [measured(self.case)]

    monkeypatch.setattr(Measurement, "rows", rows)
    text = run_scale("digits", [], SETTINGS, tmp_path, None)
    assert seen == [0, 1, 2, 3, 4][: len(seen)]
    assert len(seen) > 3
    written = json.loads((tmp_path / "scale.json").read_text())
    assert written["command"] == text.splitlines()[3]
    assert written["command"].startswith("dccl scale --conf digits --devices 5 --workers 1")
    assert written["cores"] >= 1
    assert (tmp_path / "scale.md").read_text() == text
    assert (tmp_path / "scale.png").exists()


def test_an_interrupt_keeps_what_there_is(monkeypatch, tmp_path):
    def rows(self):
        if self.case.system != BARE:
            raise KeyboardInterrupt
        return [measured(self.case)]

    monkeypatch.setattr(Measurement, "rows", rows)
    with pytest.raises(KeyboardInterrupt):
        run_scale("digits", [], SETTINGS, tmp_path, None)
    assert len(json.loads((tmp_path / "scale.json").read_text())["rows"]) == 1
    assert (tmp_path / "scale.png").exists()


def test_failures_are_told_at_the_end(monkeypatch, tmp_path):
    def rows(self):
        row = measured(self.case)
        if self.case.system == FLOWER:
            del row["later"]
            row["error"] = "it died"
        return [row]

    monkeypatch.setattr(Measurement, "rows", rows)
    with pytest.raises(RunError, match=r"Flower FedAvg, 3 devices, 1 worker: it died, and 1 more"):
        run_scale("digits", [], SETTINGS, tmp_path, None)
    assert len(json.loads((tmp_path / "scale.json").read_text())["rows"]) == 5
