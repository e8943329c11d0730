from __future__ import annotations

from dccl_flower.data.images import cache_root


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
