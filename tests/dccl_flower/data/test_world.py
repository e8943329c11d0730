from __future__ import annotations

import numpy as np
import pytest

from dccl_flower.data.interactions import PAST, RECENT, TEST
from dccl_flower.data.world import made_up_world
from dccl_flower.interaction_config import LogSplitConf, WorldConf

ARRAYS = ("users", "items", "labels", "times", "parts", "profiles", "features", "clusters")


def world(seed=0, split=None, **conf):
    return made_up_world(WorldConf(**conf), split or LogSplitConf(), seed)


@pytest.fixture(scope="module")
def default():
    return world()


def test_it_is_as_large_as_asked_for(default):
    assert (default.num_users, default.num_items) == (2000, 400)
    assert set(np.unique(default.clusters)) == set(range(8))
    assert default.profile_sizes == (7, 2)
    assert default.feature_sizes == (12,)
    assert 0.3 < default.labels.mean() < 0.7


def test_users_have_a_handful_of_rows_to_a_few_hundred(default):
    counts = np.diff(default.offsets)
    assert counts.min() >= 5
    assert counts.max() <= 500
    assert 15 <= np.median(counts) <= 20
    assert counts.mean() > 1.3 * np.median(counts)
    assert (counts > 100).mean() == pytest.approx(0.03, abs=0.02)


def test_parts_are_the_split_s(default):
    shares = [(default.parts == part).mean() for part in (PAST, RECENT, TEST)]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.001)
    last = world(users=50, split=LogSplitConf("last_out"))
    assert all(len(last.rows_of(user, TEST)) == 1 for user in range(50))


def test_the_seed_decides_and_nothing_else():
    one, same, other = (world(seed, users=50) for seed in (0, 0, 1))
    assert all((getattr(one, name) == getattr(same, name)).all() for name in ARRAYS)
    assert one.items[:99].tolist() != other.items[:99].tolist()
    assert one.clusters.tolist() != other.clusters.tolist()


def rates(log):
    """Return the share of likes (clusters, categories)."""
    clusters, categories = log.clusters[log.users], log.features[log.items, 0]
    shape = (log.clusters.max() + 1, log.feature_sizes[0])
    likes, all_ = np.zeros(shape), np.zeros(shape)
    np.add.at(likes, (clusters, categories), log.labels)
    np.add.at(all_, (clusters, categories), 1)
    return likes / all_


def test_paired_clusters_contradict_one_another(default):
    found = rates(default) - 0.5
    across = [np.corrcoef(found[2 * k], found[2 * k + 1])[0, 1] for k in range(4)]
    assert np.mean(across) < -0.3
    assert found.std(axis=1).min() > 0.05


def test_a_profile_tells_the_pair_of_a_user_more_often_than_not_but_never_which_of_it(default):
    pairs = default.clusters // 2
    assert (default.profiles[:, 0] == pairs).mean() == pytest.approx(0.6 + 0.4 / 7, abs=0.04)
    odd, even = (default.profiles[default.clusters % 2 == k, 0] for k in (1, 0))
    assert np.bincount(odd) / len(odd) == pytest.approx(np.bincount(even) / len(even), abs=0.06)


def test_popular_items_are_shown_more_often():
    even = world(users=500, popularity=0.0, fleeting=0.0)
    biased = world(users=500, popularity=1.0, fleeting=0.0)
    most = [np.bincount(log.items).max() / len(log.items) for log in (even, biased)]
    assert most[0] < 0.01 < 0.1 < most[1]


def test_items_come_and_go(default):
    late = default.times > np.quantile(default.times, 0.8)
    early = default.times < np.quantile(default.times, 0.2)
    seen = [set(default.items[rows]) for rows in (early, late)]
    assert seen[0] - seen[1]
    assert seen[1] - seen[0]
    staying = world(users=500, fleeting=0.0)
    assert len(np.unique(staying.items)) > 390


def test_without_drift_a_taste_stays_what_it_was():
    def change(**conf):
        log = world(users=3000, fleeting=0.0, categories=4, **conf)
        halves = [log.times < np.median(log.times), log.times >= np.median(log.times)]
        kinds = log.clusters[log.users] * 4 + log.features[log.items, 0]
        rates = [np.bincount(kinds[h], log.labels[h]) / np.bincount(kinds[h]) for h in halves]
        return np.abs(rates[0] - rates[1]).mean()

    assert change(drift=0.0) < 0.04 < change(drift=1.0)


@pytest.mark.parametrize("clusters", [1, 3])
def test_an_odd_number_of_clusters_is_no_trouble(clusters):
    assert world(users=60, clusters=clusters).clusters.max() == clusters - 1


def test_the_smallest_world():
    log = world(users=1, items=2, clusters=1, categories=1, days=1, split=LogSplitConf("last_out"))
    assert (log.num_users, log.num_items) == (1, 2)
    assert 5 <= len(log.users) <= 500
