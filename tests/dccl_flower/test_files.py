from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from dccl_flower.config import ConfError
from dccl_flower.files import (
    append_whole,
    content_key,
    damaged_file,
    write_array,
    write_aside,
    write_folder,
    write_json,
    write_sums,
)


def fill(folder, text="done"):
    (folder / "a").write_text(text)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    "content",
    ["0.5 ± 0.1\n", "0.5 ± 0.1\n".encode(), lambda p: p.write_text("0.5 ± 0.1\n", "utf8")],
)
def test_text_bytes_and_what_a_function_writes_take_the_place_of_the_last(tmp_path, content):
    path = tmp_path / "new" / "a.md"
    for each in ("before", content):
        write_aside(path, each)
    assert path.read_bytes() == b"0.5 \xc2\xb1 0.1\n"
    assert os.listdir(path.parent) == ["a.md"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_last_file_and_nothing_beside_it(tmp_path, error):
    def fail(aside):
        aside.write_text("half")
        raise error

    write_aside(tmp_path / "a", "before")
    with pytest.raises(type(error)):
        write_aside(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "before"
    assert os.listdir(tmp_path) == ["a"]


def test_two_threads_at_once_do_not_disturb_each_other(tmp_path):
    both = Barrier(2)

    def write(text):
        def slowly(aside):
            aside.write_text(text)
            both.wait(20)
            assert aside.read_text() == text

        write_aside(tmp_path / "a", slowly)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["one", "other"]))
    assert (tmp_path / "a").read_text() in ("one", "other")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.usefixtures("umask")
def test_files_and_folders_have_the_rights_that_the_user_usually_gives(tmp_path):
    write_aside(tmp_path / "a", b"")
    write_folder(tmp_path / "x", fill)
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "x")]
    assert rights == [0o640, 0o750]


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": [1]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
    assert json.loads(path.read_text()) == {"a": [1]}


def test_a_folder_appears_whole(tmp_path):
    write_folder(tmp_path / "new" / "x", fill)
    assert os.listdir(tmp_path / "new") == ["x"]
    assert (tmp_path / "new" / "x" / "a").read_text() == "done"


def test_nothing_can_be_seen_before_all_is_written(tmp_path):
    def peek(target):
        fill(target)
        assert not (tmp_path / "x").exists()

    write_folder(tmp_path / "x", peek)
    assert (tmp_path / "x").is_dir()


@pytest.mark.parametrize("error", [ConfError("bad"), OSError("disk full"), KeyboardInterrupt()])
def test_nothing_stays_behind_when_filling_fails(tmp_path, error):
    def fail(target):
        fill(target)
        raise error

    with pytest.raises(type(error)):
        write_folder(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_file_that_was_to_be(tmp_path, small_files):
    def fill_much(target):
        write_array(target / "a.npy", np.zeros(4000))

    for write in (
        lambda: write_folder(tmp_path / "x", fill_much),
        lambda: write_aside(tmp_path / "x" / "a.npy", bytes(30_000)),
    ):
        with pytest.raises(OSError, match=rf"File too large: '{tmp_path}/x/a\.npy'$"):
            write()
    assert not list(tmp_path.rglob("*.*"))


def test_a_text_is_appended_whole_or_not_at_all(tmp_path, small_files):
    path = tmp_path / "log"
    for text in ("first\n", "second\n"):
        append_whole(path, text)
    with pytest.raises(OSError, match=rf"File too large: '{path}'$"):
        append_whole(path, "a" * 30_000)
    append_whole(path, "third\n")
    assert path.read_text() == "first\nsecond\nthird\n"


@pytest.mark.parametrize("shape", [(3, 2), (0,), (4, 0)])
def test_an_array_comes_back_as_numpy_writes_it(tmp_path, shape):
    array = np.arange(math.prod(shape), dtype=np.int64).reshape(shape).T
    write_array(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


def test_sums_find_the_file_that_is_damaged_missing_or_new(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    assert damaged_file(tmp_path) is None
    lines = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in "ab"]
    assert (tmp_path / "SHA256").read_text() == "".join(lines)
    (tmp_path / "c").touch()
    assert damaged_file(tmp_path) == "c"
    (tmp_path / "b").unlink()
    assert damaged_file(tmp_path) == "b"
    (tmp_path / "a").write_text("c")
    assert damaged_file(tmp_path) == "a"
    for content in (b"", b"no sums", b"\xff"):
        (tmp_path / "SHA256").write_bytes(content)
        assert damaged_file(tmp_path) == "SHA256"


def test_a_folder_that_cannot_be_written_is_named_with_the_cause(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfError, match=r"^cache .*/file: cannot be written \(.+\)$"):
        write_folder(tmp_path / "file" / "x", fill)


def test_a_content_key_is_short_and_changes_with_every_fact():
    keys = {content_key(1, "a"), content_key("a", 1), content_key("1", "a"), content_key(1, ["a"])}
    assert len(keys) == 4
    # What lies in caches is found again.
    assert content_key(1, "a") == hashlib.sha256(b'[1, "a"]').hexdigest()[:16]
