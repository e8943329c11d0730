from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from dccl_flower.cache import cache_entry, cache_root
from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.data.images import open_images
from dccl_flower.files import write_array
from dccl_flower.simulations.experiment import open_experiment

TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from dccl_flower.cache import cache_entry

def fill(folder):
    with Path(sys.argv[1]).open("a") as told:
        told.write("filled\\n")
    for name in "ab":
        (folder / name).write_text(name)
        time.sleep(0.3)

print("ready", flush=True)
sys.stdin.readline()
print("".join(sorted(path.read_text() for path in cache_entry("x", fill).glob("[ab]"))))
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flip_a_bit(path):
    """Change the byte in the middle; time and size stay."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


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


@pytest.mark.parametrize("conf", ["digits", "dccl_world"])
def test_whatever_file_is_damaged_is_named_and_made_anew(conf, cache, caplog):
    def opened():
        small = ["data.world.users=200", "devices.count=20"] if conf == "dccl_world" else []
        return open_experiment(load_conf(conf, small))

    opened()
    files = {path: path.read_bytes() for path in cache.glob("*-*/*")}
    assert len(files) >= 6
    for path, content in files.items():
        flip_a_bit(path)
        caplog.clear()
        opened()
        named = path if path.name != "SHA256" else path.parent
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(f"cache file {named}")
        assert path.read_bytes() == content
        opened()
        assert len(caplog.messages) == 1


def test_what_is_checked_is_mapped_still(cache):
    conf = load_conf("digits").data
    assert isinstance(open_images(conf).train, np.memmap)
    assert isinstance(open_images(conf).train, np.memmap)


def test_of_two_processes_at_first_use_one_fills_it_and_both_read_it_whole(cache, tmp_path):
    command = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path / "told")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [each.stdout.readline() for each in both] == ["ready\n"] * 2
    for each in both:
        each.stdin.write("\n")
        each.stdin.flush()
    assert [each.communicate(timeout=60)[0] for each in both] == ["ab\n"] * 2
    assert (tmp_path / "told").read_text() == "filled\n"
    assert [path.name for path in cache.glob("x*")] == ["x"]


def test_one_that_dies_while_it_fills_holds_nobody_up(cache, tmp_path):
    dying = TWO_AT_ONCE.replace("time.sleep(0.3)", "__import__('os')._exit(9)")
    done = subprocess.run(
        [sys.executable, "-c", dying, str(tmp_path / "told")], input="\n", text=True, check=False
    )
    assert done.returncode == 9
    assert (cache_entry("x", lambda folder: (folder / "a").write_text("a")) / "a").exists()


def test_a_full_disk_leaves_no_entry_and_tells_the_file(cache, small_files):
    def fill(folder):
        write_array(folder / "a.npy", np.zeros(4000))

    with pytest.raises(OSError, match=rf"File too large: '{cache}/x/a\.npy'$"):
        cache_entry("x", fill)
    assert list(cache.glob("x*")) == []


def test_a_cache_that_cannot_be_made_is_refused_in_one_line(cache):
    cache.write_text("")
    with pytest.raises(ConfError, match=rf"^cache {cache}: cannot be written \(.+\)$"):
        cache_entry("x", lambda folder: None)


def test_a_cache_to_read_from_alone_serves(cache):
    cache_entry("x", lambda folder: (folder / "a").write_text("a"))
    cache.chmod(0o500)
    (cache / ".locks").chmod(0o500)
    try:
        assert cache_entry("x", lambda folder: pytest.fail("made anew")) == cache / "x"
    finally:
        cache.chmod(0o700)
