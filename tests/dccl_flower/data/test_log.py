from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dccl_flower.config import ConfError
from dccl_flower.data import log as logs
from dccl_flower.data.interactions import TEST
from dccl_flower.data.log import open_interactions
from dccl_flower.interaction_config import LogDataConf, LogSplitConf, WorldConf
from dccl_flower.typed_yaml import typed

WORLD = LogDataConf(world=WorldConf(users=30, items=20))
FIELDS = ("users", "items", "labels", "times", "parts", "profiles", "features")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "rows.csv"
    rows = [f"u{row % 4},i{row % 7},{row % 2},{row}" for row in range(40)]
    file.write_text("\n".join(["user,item,label,time", *rows]))
    return LogDataConf("table", str(file))


def entries(cache):
    return sorted(folder.name for folder in cache.glob("log-*"))


def test_a_world_is_made_once_and_mapped(cache, monkeypatch):
    first = open_interactions(WORLD, 0)
    monkeypatch.delattr(logs, "made_up_world")
    again = open_interactions(WORLD, 0)
    assert all((getattr(first, name) == getattr(again, name)).all() for name in FIELDS)
    assert isinstance(again.users, np.memmap)
    assert not again.users.flags.writeable
    assert (again.clusters == first.clusters).all()
    assert len(entries(cache)) == 1


def test_seed_world_and_split_make_other_worlds_and_the_history_none(cache):
    for conf, seed in (
        (WORLD, 0),
        (WORLD, 1),
        (replace(WORLD, world=WorldConf(users=31, items=20)), 0),
        (replace(WORLD, split=LogSplitConf("last_out")), 0),
        (replace(WORLD, history=3), 0),
    ):
        open_interactions(conf, seed)
    assert len(entries(cache)) == 4


def test_a_table_without_profiles_is_read_once(cache, table, monkeypatch):
    log = open_interactions(table, 0)
    assert (len(log.users), log.num_users, log.num_items) == (40, 4, 7)
    assert log.profiles.shape == (4, 0)
    assert log.clusters is None
    monkeypatch.setattr(logs, "READERS", {})
    assert (open_interactions(table, 1).items == log.items).all()
    assert len(entries(cache)) == 1


def test_a_changed_file_is_read_anew(cache, table, tmp_path):
    open_interactions(table, 0)
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("\nu9,i9,1,99\n")
    assert open_interactions(table, 0).num_users == 5


def test_the_seed_decides_which_negatives_are_drawn(cache, table):
    implicit = replace(table, implicit=True, negatives=0)
    open_interactions(implicit, 0)
    open_interactions(implicit, 1)
    assert len(entries(cache)) == 2


def test_movielens_from_files_to_log(cache, tmp_path):
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n9,5,4.0,30\n9,7,3.5,20\n2,5,4.5,10\n2,7,1,40\n"
    )
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n7,A,War\n5,B,Drama|War\n")
    conf = LogDataConf("movielens", str(tmp_path), split=LogSplitConf("last_out", recent=0.0))
    log = open_interactions(conf, 0)
    assert log.users.tolist() == [0, 0, 1, 1]
    assert log.items.tolist() == [0, 1, 1, 0]
    assert log.labels.tolist() == [1, 0, 0, 1]
    assert log.features.tolist() == [[1], [2]]
    assert log.rows_in(TEST).tolist() == [1, 3]


def test_nothing_is_kept_of_what_is_refused(cache, table):
    with pytest.raises(ConfError, match=r"^data\.k_core=50: leaves none of 40 rows$"):
        open_interactions(replace(table, k_core=50), 0)
    assert entries(cache) == []


def test_a_configuration_reads_from_yaml():
    conf = typed(LogDataConf, {"world": {"users": "50"}, "split": {"test_from": "7"}}, "data")
    assert (conf.world.users, conf.split.test_from, conf.name) == (50, 7, "world")
    for given, said in (
        ({"world": {"users": "0"}}, "data.world.users=0: must lie between 1 and 10000000"),
        ({"world": {"told": "1.5"}}, "data.world.told=1.5: must lie between 0 and 1"),
        ({"name": "netflix"}, "data.name=netflix: must be one of world, movielens, amazon, table"),
        (
            {"split": {"test": "1.0"}},
            "data.split.test=1.0: must lie between 0 and 1, both excluded",
        ),
        ({"history": "0"}, "data.history=0: must be at least 1"),
    ):
        with pytest.raises(ConfError) as caught:
            typed(LogDataConf, given, "data")
        assert str(caught.value) == said
