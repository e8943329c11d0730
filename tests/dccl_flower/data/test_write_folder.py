import os

import pytest

from dccl_flower.config import ConfError
from dccl_flower.data.images import cache_root, write_folder


def fill(folder, text="done"):
    (folder / "a").write_text(text)


def test_a_folder_appears_whole(tmp_path):
    write_folder(tmp_path / "new" / "x", lambda target: fill(target))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x"]
    assert (tmp_path / "new" / "x" / "a").read_text() == "done"


def test_nothing_can_be_seen_before_all_is_written(tmp_path):
    def peek(target):
        fill(target)
        assert not (tmp_path / "x").exists()

    write_folder(tmp_path / "x", peek)
    assert (tmp_path / "x").is_dir()


@pytest.mark.parametrize("error", [ConfError("bad"), KeyboardInterrupt()])
def test_nothing_stays_behind_when_filling_fails(tmp_path, error):
    def fail(target):
        fill(target)
        raise error

    with pytest.raises(type(error)):
        write_folder(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_one_line(tmp_path):
    def fail(target):
        fill(target)
        raise OSError(28, "No space left on device")

    with pytest.raises(
        ConfError, match=r"^cache .*: cannot be written \(No space left on device\)$"
    ):
        write_folder(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_another_process_that_was_faster_wins(tmp_path):
    def slow(target):
        fill(target, "slow")
        (tmp_path / "x").mkdir()
        fill(tmp_path / "x", "fast")

    write_folder(tmp_path / "x", slow)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "a").read_text() == "fast"


def test_what_a_killed_process_left_aside_is_no_obstacle(tmp_path):
    (tmp_path / f"x.{os.getpid()}").mkdir()
    write_folder(tmp_path / "x", lambda target: fill(target))
    assert (tmp_path / "x" / "a").read_text() == "done"


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DCCL_CACHE", str(tmp_path / "own"))
    assert cache_root() == (tmp_path / "own").resolve()
    monkeypatch.delenv("DCCL_CACHE")
    assert cache_root() == tmp_path / "xdg" / "dccl-flower"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "dccl-flower"


def test_a_tilde_in_the_cache_path_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DCCL_CACHE", "~/kept")
    assert cache_root() == (tmp_path / "kept").resolve()
