"""Jobs in processes of their own: a shell stands in for Python, and runs ``job.sh`` of a job."""

from __future__ import annotations

import json
import os
import pkgutil
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dccl_flower.simulations import jobs
from dccl_flower.simulations.arms.arms import RUN_ARM
from dccl_flower.simulations.jobs import Job, JobRunner, Outcome, Progress
from dccl_flower.simulations.scale.benchmark import LOOPS, PREPARE
from dccl_flower.simulations.search.search import RUN_CANDIDATE
from dccl_flower.simulations.superlink import RunError

# Leaves what a job's module would leave.
DONE = """echo '{"key": "k", "pid": '$$', "module": "'$MODULE'"}' > "$FOLDER/result.json\""""
SOON = 20.0


@pytest.fixture(autouse=True)
def shell_as_python(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\nMODULE="$3" FOLDER="$4"\n. "$4/job.sh"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.fixture
def job_of(tmp_path):
    """Return a maker of jobs, each a line of shell."""

    def make(name, script="true", key="k"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "job.sh").write_text(f"{script}\n")
        return Job(f"job {name}", folder, key)

    return make


def leave_result(job, accuracy=0.5):
    (job.folder / "result.json").write_text(json.dumps({"key": job.key, "accuracy": accuracy}))


def run(*given, side_by_side=1):
    """Return the outcomes of jobs, and those that were told of in the order of ending."""
    told = []
    with JobRunner(side_by_side, told.append) as runner:
        outcomes = runner.run(given)
    return outcomes, told


def wait_for(path):
    deadline = time.monotonic() + SOON
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)
    return path.read_text()


def test_a_result_comes_back_with_its_key(job_of):
    job = job_of("a")
    leave_result(job)
    assert job.result() == {"key": "k", "accuracy": 0.5}


@pytest.mark.parametrize("content", ["", "{", '{"key": "k"', "[1]", '"k"', "null", '{"key": "l"}'])
def test_a_result_that_is_damaged_or_of_another_key_is_none(job_of, content):
    job = job_of("a")
    (job.folder / "result.json").write_text(content)
    assert job.result() is None


def test_a_result_without_text_or_file_is_none(job_of):
    job = job_of("a")
    assert job.result() is None
    (job.folder / "result.json").write_bytes(b"\xff\xfe")
    assert job.result() is None


def test_a_job_of_another_key_does_not_take_the_result(job_of):
    job = job_of("a")
    leave_result(job)
    assert Job(job.title, job.folder, "another").result() is None


def test_one_module_of_the_package_runs_every_job(job_of):
    (outcome,), _ = run(job_of("a", DONE))
    assert outcome.result["module"] == "dccl_flower.simulations.job"
    assert outcome.error == ""
    assert outcome.seconds > 0


def test_threads_of_a_job_that_wait_leave_the_core_to_others(job_of):
    (outcome,), _ = run(job_of("a", "echo $OMP_WAIT_POLICY; exit 1"))
    assert outcome.error == "PASSIVE"


def test_every_job_has_a_process_of_its_own(job_of):
    outcomes, _ = run(*(job_of(name, DONE) for name in "abc"), side_by_side=2)
    pids = {outcome.result["pid"] for outcome in outcomes}
    assert len(pids) == 3
    assert os.getpid() not in pids


def test_what_is_done_is_not_run_again(job_of):
    done, new = job_of("a", "touch $FOLDER/ran; " + DONE), job_of("b", DONE)
    leave_result(done)
    outcomes, _ = run(done, new)
    assert outcomes[0] == Outcome(done, {"key": "k", "accuracy": 0.5})
    assert not (done.folder / "ran").exists()
    assert outcomes[1].result["pid"] > 0


@pytest.mark.parametrize("content", ['{"key": "k"', '{"key": "old"}'])
def test_what_is_damaged_or_of_another_key_is_run_again(job_of, content):
    job = job_of("a", DONE)
    (job.folder / "result.json").write_text(content)
    (outcome,), _ = run(job)
    assert outcome.result["pid"] > 0


def test_outcomes_come_in_the_order_given_and_are_told_as_they_end(job_of):
    slow = job_of("a", f"while [ ! -e $FOLDER/../b/result.json ]; do sleep 0.02; done; {DONE}")
    fast = job_of("b", DONE)
    outcomes, told = run(slow, fast, side_by_side=2)
    assert [outcome.job for outcome in outcomes] == [slow, fast]
    assert sorted(each.job.title for each in told) == ["job a", "job b"]


def test_no_more_jobs_run_than_side_by_side(job_of):
    busy = (
        "mkdir $FOLDER/../busy || { echo two at once; exit 1; }; sleep 0.05; rmdir $FOLDER/../busy"
    )
    outcomes, _ = run(*(job_of(name, f"{busy}; {DONE}") for name in "abc"), side_by_side=1)
    assert [outcome.error for outcome in outcomes] == ["", "", ""]


def building_on(base, job):
    return replace(job, builds_on=base)


def test_what_builds_on_another_runs_after_it_also_side_by_side(job_of):
    base = job_of("base", f"sleep 0.2; {DONE}")
    top = building_on(base, job_of("top", f"test -e $FOLDER/../base/result.json && {DONE}"))
    outcomes, told = run(base, top, job_of("free", DONE), side_by_side=3)
    assert [outcome.error for outcome in outcomes] == ["", "", ""]
    assert [each.job.title for each in told] == ["job free", "job base", "job top"]


def test_what_builds_on_a_failure_fails_with_its_name_and_log_and_never_starts(job_of):
    base = job_of("base", "echo 'failed: no data'; exit 1")
    middle = building_on(base, job_of("middle", f"touch $FOLDER/ran; {DONE}"))
    top = building_on(middle, job_of("top", f"touch $FOLDER/ran; {DONE}"))
    outcomes, told = run(base, middle, top, side_by_side=2)
    assert [outcome.failure for outcome in outcomes] == [
        f"no data (log: {base.log})",
        f"builds on job base, which failed (log: {base.log})",
        f"builds on job middle, which failed (log: {base.log})",
    ]
    assert not any((job.folder / "ran").exists() for job in (middle, top))
    assert len(told) == 3


def test_what_is_done_stays_done_where_its_base_fails(job_of):
    base = job_of("base", "exit 1")
    top = building_on(base, job_of("top", "exit 1"))
    leave_result(top)
    outcomes, _ = run(base, top)
    assert [outcome.result is None for outcome in outcomes] == [True, False]


def test_a_failing_job_tells_its_last_line_and_does_not_stop_the_others(job_of):
    failing = job_of("a", "echo out; echo '  ValueError: no data ' >&2; echo; exit 1")
    outcomes, told = run(failing, job_of("b", DONE))
    assert (outcomes[0].result, outcomes[0].error) == (None, "ValueError: no data")
    assert outcomes[1].result is not None
    assert told == outcomes
    assert failing.log.read_text().startswith("out\n")


def test_the_cause_is_told_with_the_one_log_that_has_it(job_of):
    said = "echo before; echo 'failed: device 3 died (log: run/flower.log)'; echo leaked; exit 1"
    outcomes, _ = run(job_of("a", said), job_of("b", "echo 'failed: no data'; exit 1"))
    assert [outcome.error for outcome in outcomes] == ["device 3 died", "no data"]
    assert [outcome.failure for outcome in outcomes] == [
        "device 3 died (log: run/flower.log)",
        f"no data (log: {outcomes[1].job.folder}/job.log)",
    ]


def test_a_silent_failure_tells_its_code(job_of):
    (outcome,), _ = run(job_of("a", "exit 3"))
    assert (outcome.result, outcome.error) == (None, "ended with code 3")


def test_a_silent_failure_does_not_tell_what_an_earlier_attempt_said(job_of):
    job = job_of("a", "kill -9 $$")
    job.log.write_text("ValueError: long ago\n")
    (outcome,), _ = run(job)
    assert outcome.error == "ended with code -9"


def test_a_job_that_ends_well_without_a_result_has_failed(job_of):
    (outcome,), _ = run(job_of("a", "echo all is well"))
    assert (outcome.result, outcome.error) == (None, "all is well")


def test_a_result_of_an_earlier_key_does_not_hide_a_failure(job_of):
    job = job_of("a", "echo broken; exit 1")
    (job.folder / "result.json").write_text('{"key": "old"}')
    (outcome,), _ = run(job)
    assert (outcome.result, outcome.error) == (None, "broken")


def test_leaving_the_block_ends_the_jobs_that_run(job_of):
    endless = job_of("endless", "echo $$ > $FOLDER/pid; exec sleep 100")
    other = job_of("other", f"while [ ! -s {endless.folder}/pid ]; do sleep 0.02; done; {DONE}")

    def stop(outcome):
        if outcome.job is other:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), JobRunner(2, stop) as runner:
        runner.run([other, endless])
    pid = int(wait_for(endless.folder / "pid"))
    assert not psutil.pid_exists(pid)
    assert psutil.Process().children(recursive=True) == []


def test_a_job_that_does_not_heed_the_end_is_killed(job_of, monkeypatch):
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.2)
    stubborn = "trap '' TERM; echo $$ > $FOLDER/pid; while true; do sleep 0.02; done"
    deaf = job_of("deaf", stubborn)
    other = job_of("other", f"while [ ! -s {deaf.folder}/pid ]; do sleep 0.02; done; {DONE}")

    def stop(outcome):
        if outcome.job is other:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), JobRunner(2, stop) as runner:
        runner.run([other, deaf])
    assert not psutil.pid_exists(int(wait_for(deaf.folder / "pid")))


def test_after_the_block_no_job_starts(job_of):
    job = job_of("a", DONE)
    told = []
    with JobRunner(1, told.append) as runner:
        pass
    with pytest.raises(RuntimeError):
        runner.run([job])
    assert not (job.folder / "result.json").exists()


def outcome_of(title, seconds=0.0, accuracy=None):
    """Return how a job ended; without accuracy it failed."""
    result = None if accuracy is None else {"scores": {"accuracy": accuracy, "other": 0.9}}
    error = "out of memory" if result is None else ""
    return Outcome(Job(title, Path(), "k"), result, error, seconds)


def test_progress_estimates_what_is_left_from_what_has_been_run():
    lines = []
    progress = Progress(lines.append, 8, side_by_side=2)
    progress.ended(outcome_of("a", 0.0, 0.7))
    progress.ended(outcome_of("b", 600.0, 0.71))
    progress.ended(outcome_of("c", 1200.0, 0.72))
    progress.ended(outcome_of("d", 120.0))
    # Two at a time: 6 of 600 s each take 1800 s, 5 of 900 s take 2250 s, 4 of 640 s take 1280 s.
    assert lines == [
        "a: 70.0% in 0 s (7 left, about 0 min)",
        "b: 71.0% in 600 s (6 left, about 30 min)",
        "c: 72.0% in 1200 s (5 left, about 45 min)",
        "d: out of memory (4 left, about 21 min)",
    ]


def test_progress_says_when_all_is_done():
    lines = []
    progress = Progress(lines.append, 2, side_by_side=1)
    progress.ended(outcome_of("a", 90.0, 0.71))
    progress.ended(outcome_of("b", 90.0, 0.72))
    assert lines == ["a: 71.0% in 90 s (1 left, about 2 min)", "b: 72.0% in 90 s (all done)"]


def test_a_folder_says_what_to_call_on_which_configuration(tmp_path):
    folder = tmp_path / "new" / "job"
    job = jobs.make_job("a job", folder, "k", "seed: 3\n", "some.module:function", kind="central")
    assert job == Job("a job", folder, "k")
    assert (folder / "conf.yaml").read_text() == "seed: 3\n"
    described = {"function": "some.module:function", "key": "k", "kind": "central"}
    assert json.loads((folder / "job.json").read_text()) == described


@pytest.mark.parametrize("function", [RUN_ARM, RUN_CANDIDATE, PREPARE, *LOOPS.values()])
def test_what_the_jobs_of_this_package_call_is_there(function):
    assert callable(pkgutil.resolve_name(function))


def test_the_first_failure_is_told_with_the_number_of_others():
    jobs.raise_failures([])
    with pytest.raises(RunError, match=r"^a: x$"):
        jobs.raise_failures(["a: x"])
    with pytest.raises(RunError, match=r"^a: x, and 2 more failed$"):
        jobs.raise_failures(["a: x", "b: y", "c: z"])
