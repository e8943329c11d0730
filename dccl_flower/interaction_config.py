"""The configuration of a log of users and items, and of a made-up world in place of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dccl_flower.config import DataConf
from dccl_flower.typed_yaml import bound, section, share


@dataclass
class WorldConf:
    """A made-up log: who there is, what tells them apart, what changes.

    ``rows``: the median of a user's rows. ``told``: how often a profile fits the user's taste.
    ``drift``: the quarter turns that tastes make over all ``days``. ``noise``: a user's own taste
    beside that of the cluster, which is of length 1. ``popularity``: the share of rows whose item
    is drawn from a long tail, and not evenly. ``fleeting``: the share of items that come and go.
    """

    users: int = bound(2000, at_least=1, at_most=10_000_000)
    items: int = bound(400, at_least=2, at_most=10_000_000)
    clusters: int = bound(8, at_least=1, at_most=1000)
    categories: int = bound(12, at_least=1, at_most=1000)
    rows: int = bound(16, at_least=6, at_most=400)
    days: int = bound(60, at_least=1, at_most=36500)
    told: float = share(0.6)
    drift: float = share(0.3)
    noise: float = bound(0.3, at_least=0)
    popularity: float = share(0.5)
    fleeting: float = share(0.5)


@dataclass
class LogSplitConf:
    """Which rows the cloud is first trained on, which came since, which only score.

    By ``time``: the last share ``test`` of all rows scores and the share ``recent`` before it came
    since; moments in Unix seconds count instead where they are given. By ``last_out``: each user's
    ``last`` rows score, and the share ``recent`` of the user's others came since.
    """

    by: Literal["time", "last_out"] = "time"
    recent: float = bound(0.2, at_least=0, below=1)
    test: float = bound(0.1, above=0, below=1)
    recent_from: int | None = None
    test_from: int | None = None
    last: int = bound(1, at_least=1)


@dataclass
class LogDataConf(DataConf):
    """Where the rows of users and items come from, and what is made of them.

    A rating of ``threshold`` or more is a label of 1: of 4 stars where nothing is given; a table
    then has labels already. ``implicit``: every row is a label of 1, and for each ``negatives``
    items are drawn that the user never met. ``k_core``: users and items have so many rows at least.
    ``history``: how many of the items that a user liked a model sees. Column names, ``separator``
    (``tab`` for a tab) and ``encoding`` are a table's, the last also that of Amazon's csv.
    """

    name: Literal["world", "movielens", "amazon", "table"] = "world"
    threshold: float | None = None
    implicit: bool = False
    negatives: int = bound(4, at_least=0)
    negatives_by: Literal["uniform", "popularity"] = "uniform"
    k_core: int = bound(1, at_least=1)
    history: int = bound(20, at_least=1)
    user_column: str = "user"
    item_column: str = "item"
    label_column: str = "label"
    time_column: str = "time"
    separator: str = ","
    encoding: str = "utf-8"
    split: LogSplitConf = section(LogSplitConf)
    world: WorldConf = section(WorldConf)
