"""How a run of Flower is followed, and what is made of one that is lost."""

from __future__ import annotations

import pytest

from dccl_flower.simulations.app.events import EventReader, EventWriter
from dccl_flower.simulations.run import following
from dccl_flower.simulations.run.following import WorthAnother, events_of
from dccl_flower.simulations.superlink import FlowerError, RunError


class Link:
    """A SuperLink with as many processes as there are left, which says how the run ended."""

    def __init__(self, alive=True, said=("running", "")):
        self.alive, self.said = alive, said

    def is_alive(self):
        return self.alive

    def num_processes(self):
        return int(self.alive)

    def status(self, run_id):
        return self.said


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(following, "STATUS_SECONDS", 0.05)


def followed(folder, link, patience=60.0):
    return list(events_of(link, "1", EventReader(folder), patience))


def test_a_run_is_followed_to_its_end(tmp_path):
    writer = EventWriter(tmp_path)
    for name in ("started", "prepared", "finished", "after"):
        writer.write(name)
    names = [event["event"] for event in followed(tmp_path, Link())]
    assert names == ["started", "prepared", "finished"]


@pytest.mark.parametrize("again", [True, False])
def test_a_failed_run_is_worth_another_attempt_where_it_says_so(again, tmp_path):
    EventWriter(tmp_path).write("failed", cause="a worker is gone", again=again)
    with pytest.raises(RunError, match="a worker is gone") as error:
        followed(tmp_path, Link())
    assert isinstance(error.value, WorthAnother) == again


def test_a_run_whose_rounds_do_not_end_hangs(tmp_path):
    EventWriter(tmp_path).write("prepared")
    with pytest.raises(WorthAnother, match="no round has ended for 0 s"):
        followed(tmp_path, Link(), patience=0.05)


def test_what_comes_before_the_rounds_may_take_its_time(tmp_path):
    EventWriter(tmp_path).write("phase")
    with pytest.raises(FlowerError, match="finished:failed"):
        followed(tmp_path, Link(said=("finished:failed", "")), patience=0.0)


def test_a_superlink_that_died_ends_the_run(tmp_path):
    with pytest.raises(FlowerError, match="the SuperLink has died"):
        followed(tmp_path, Link(alive=False))


def test_a_removed_folder_is_not_waited_for(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    EventWriter(folder).write("started")
    events = events_of(Link(), "1", EventReader(folder), 60.0)
    next(events)
    (folder / "events.jsonl").unlink()
    folder.rmdir()
    with pytest.raises(RunError, match="events have been removed"):
        next(events)
