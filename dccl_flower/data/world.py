"""A made-up log of users and items, drawn from a seed: tastes that contradict one another."""

from __future__ import annotations

from math import pi

import numpy as np

from dccl_flower.data.interactions import Interactions
from dccl_flower.data.log_split import parts_of
from dccl_flower.interaction_config import LogSplitConf, WorldConf
from dccl_flower.seeds import numpy_generator

DIMENSIONS = 8  # of what an item is and a user likes
AGE_GROUPS, GENDERS = 7, 2
FEWEST_ROWS, MOST_ROWS = 5, 500  # of a user
TAIL = 3.0  # of the Lomax distribution of a user's rows beyond the fewest
SLOTS = 64  # spans of time in which the same items are there
TASTE, QUALITY, GENEROSITY = 2.0, 0.6, 0.4  # deviations of the parts of a log-odds
SHARED = 0.5  # of an item's variance: that of its category
COMMON = 0.2  # of a taste's square length: what two opposite clusters have in common
DAY = 86400


def made_up_world(conf: WorldConf, split: LogSplitConf, seed: int) -> Interactions:
    """Return a log in which no one model without user ids serves all, and no user has enough rows.

    A label is 1 with the odds exp(<taste, item> + quality + generosity). Clusters 2k and 2k + 1
    have the same profiles and, but for a small part, opposite tastes. Profiles are age group and
    gender, an item's feature is its category: each tells a part. Tastes turn and items come and go
    over time. All users and items are kept, also those without rows in some part.
    """
    users, times, profiles, clusters = _people(conf, seed)
    factors, features, lives = _things(conf, seed)
    items = _shown(conf, lives, times, seed)
    odds = _odds(conf, seed, users, items, times, clusters, factors)
    labels = numpy_generator(seed, "world", "labels").random(len(users)) < 1 / (1 + np.exp(-odds))
    parts = parts_of(users, times, split)
    return Interactions(
        users, items, labels.astype(np.uint8), times, parts, profiles, features, clusters
    )


def _people(conf: WorldConf, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return users and times (N,) of rows in order, profiles and clusters (users,)."""
    draw = numpy_generator(seed, "world", "users")
    clusters = draw.integers(0, conf.clusters, conf.users)
    kind = clusters // 2
    told = np.column_stack([kind % AGE_GROUPS, kind // AGE_GROUPS % GENDERS])
    others = draw.integers(0, [AGE_GROUPS, GENDERS], (conf.users, 2))
    profiles = np.where(draw.random((conf.users, 2)) < conf.told, told, others)
    scale = (conf.rows - FEWEST_ROWS) / (2 ** (1 / TAIL) - 1)
    counts = (FEWEST_ROWS + scale * draw.pareto(TAIL, conf.users)).round().clip(max=MOST_ROWS)
    users = np.repeat(np.arange(conf.users, dtype=np.int32), counts.astype(np.int64))
    times = draw.integers(0, conf.days * DAY, len(users))
    order = np.lexsort((times, users))
    return users, times[order], profiles.astype(np.int16), clusters.astype(np.int16)


def _things(conf: WorldConf, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return factors (items, DIMENSIONS + 1), quality last; features; first and last slot."""
    draw = numpy_generator(seed, "world", "items")
    categories = draw.integers(0, conf.categories, conf.items)
    centres = draw.standard_normal((conf.categories, DIMENSIONS))
    own = draw.standard_normal((conf.items, DIMENSIONS))
    factors = np.sqrt(SHARED) * centres[categories] + np.sqrt(1 - SHARED) * own
    quality = QUALITY * draw.standard_normal((conf.items, 1))
    is_fleeting = draw.random(conf.items) < conf.fleeting
    is_fleeting[0] = False  # so that there is something to show at any time
    first = np.where(is_fleeting, draw.integers(-SLOTS // 4, SLOTS, conf.items), 0)
    length = np.where(is_fleeting, draw.integers(SLOTS // 8, SLOTS // 2, conf.items), SLOTS)
    features = categories.astype(np.int16)[:, None]
    return np.hstack([factors, quality]), features, np.column_stack([first, first + length])


def _shown(conf: WorldConf, lives: np.ndarray, times: np.ndarray, seed: int) -> np.ndarray:
    """Return the item (N,) int32 of each row, drawn among those that are there at its time."""
    draw = numpy_generator(seed, "world", "shown")
    popularity = 1 / draw.permutation(np.arange(1.0, conf.items + 1))  # Zipf's law
    slots = times * SLOTS // (conf.days * DAY)
    is_popular = draw.random(len(times)) < conf.popularity
    place = draw.random(len(times))
    items = np.empty(len(times), dtype=np.int32)
    in_order = np.argsort(slots, kind="stable")
    ends = np.searchsorted(slots[in_order], np.arange(SLOTS + 1))
    for slot in range(SLOTS):
        there = np.flatnonzero((lives[:, 0] <= slot) & (slot < lives[:, 1]))
        rows = in_order[ends[slot] : ends[slot + 1]]
        bounds = np.cumsum(popularity[there])
        popular = np.searchsorted(bounds, place[rows] * bounds[-1], side="right")
        even = (place[rows] * len(there)).astype(np.int64)
        chosen = np.where(is_popular[rows], popular, even).clip(max=len(there) - 1)
        items[rows] = there[chosen]
    return items


def _odds(
    conf: WorldConf,
    seed: int,
    users: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    clusters: np.ndarray,
    factors: np.ndarray,
) -> np.ndarray:
    """Return the log-odds (N,) of a label of 1."""
    draw = numpy_generator(seed, "world", "tastes")
    start, later = _tastes(conf, draw), _tastes(conf, draw)
    own = draw.standard_normal((conf.users, DIMENSIONS)) * conf.noise / np.sqrt(DIMENSIONS)
    generosity = GENEROSITY * draw.standard_normal(conf.users)
    angles = conf.drift * pi / 2 * times / (conf.days * DAY)
    liking = np.zeros(len(users))
    for axis in range(DIMENSIONS):  # one by one, for memory
        taste = np.cos(angles) * start[clusters, axis][users]
        taste += np.sin(angles) * later[clusters, axis][users]
        taste += own[:, axis][users]
        liking += taste * factors[items, axis]
    return TASTE * liking + factors[items, -1] + generosity[users]


def _tastes(conf: WorldConf, draw: np.random.Generator) -> np.ndarray:
    """Return a taste of about length 1 for each cluster, and one more where their number is odd."""
    directions = draw.standard_normal((2, (conf.clusters + 1) // 2, DIMENSIONS))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    common, contrast = np.sqrt(COMMON) * directions[0], np.sqrt(1 - COMMON) * directions[1]
    return np.stack([common + contrast, common - contrast], axis=1).reshape(-1, DIMENSIONS)
