import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.data.clients import by_classes_held, like_devices
from dccl_flower.image_config import ImageDevicesConf

# Forty cloud samples among sixty: three classes in turn, six writers, one after the other.
LABELS = np.tile(np.arange(3), 20)
ROWS = np.arange(20, 60)
GROUPS = np.arange(60) // 10


def clients(seed=0, key="cloud.clients", **conf):
    return like_devices(ROWS, LABELS, GROUPS, ImageDevicesConf(**conf), seed, key)


def as_lists(parts):
    return [part.tolist() for part in parts]


@pytest.mark.parametrize(
    "conf",
    [
        {"partitioner": "iid", "count": 5},
        {"partitioner": "dirichlet", "count": 4, "alpha": 1.0},
        {"partitioner": "pathological", "count": 6, "classes_per_device": 1},
        {"partitioner": "pathological", "count": 6, "heterogeneity": 0.5},
        {"partitioner": "draws", "count": 7},
    ],
)
def test_every_sample_is_with_one_client(conf):
    found = clients(**conf)
    assert len(found) == conf["count"]
    assert all(len(part) for part in found)
    assert np.array_equal(np.sort(np.concatenate(found)), ROWS)
    assert as_lists(found) == as_lists(clients(**conf))
    assert as_lists(found) != as_lists(clients(seed=1, **conf))


def test_clients_have_as_few_classes_as_devices():
    found = clients(partitioner="pathological", count=6, classes_per_device=1)
    assert [len(np.unique(LABELS[part])) for part in found] == [1] * 6


def test_clients_in_place_of_draws_are_of_equal_size():
    assert [*map(len, clients(partitioner="draws", count=7, samples=3))] == [6, 6, 6, 6, 6, 5, 5]


@pytest.mark.parametrize("count", [1, 99])
def test_every_writer_is_a_client_whatever_their_number(count):
    found = clients(partitioner="natural", count=count)
    assert sorted(GROUPS[part[0]] for part in found) == [2, 3, 4, 5]
    for part in found:
        assert np.array_equal(np.sort(part), np.flatnonzero(np.isin(GROUPS, GROUPS[part[0]])))
    assert any(list(part) != sorted(part) for part in found)


def test_more_clients_than_samples_are_refused_by_the_key_that_asks_for_them():
    with pytest.raises(ConfError) as caught:
        clients(partitioner="draws", count=41)
    assert str(caught.value) == "cloud.clients=41: there are only 40 samples to share"


def test_a_partitioner_that_cannot_serve_the_clients_is_named_with_their_key():
    with pytest.raises(ConfError) as caught:
        clients(partitioner="dirichlet", count=40, alpha=0.01)
    message = str(caught.value)
    assert message.startswith("devices.partitioner=dirichlet: cannot serve cloud.clients=40 (")
    assert "\n" not in message


labels_of = st.lists(st.integers(0, 5), max_size=12).map(lambda labels: np.array(labels, dtype=int))


@settings(deadline=None)
@given(labels_of, st.lists(labels_of, min_size=1, max_size=5), st.integers(0, 99))
def test_samples_go_to_holders_of_their_class_and_all_that_can_do(labels, held, seed):
    found = by_classes_held(labels, held, seed)
    assert len(found) == len(held)
    everything = np.concatenate(found)
    assert sorted(everything) == np.flatnonzero(np.isin(labels, np.concatenate(held))).tolist()
    for part, own in zip(found, held, strict=True):
        assert set(labels[part]) <= set(own)
    assert as_lists(found) == as_lists(by_classes_held(labels, held, seed))


def test_samples_go_by_how_much_of_their_class_a_device_holds():
    held = [np.array([0] * 30 + [1]), np.array([], dtype=int), np.array([1, 0] * 10), np.array([2])]
    labels = np.repeat([0, 1, 2, 3], [4000, 2100, 5, 5])
    counts = [np.bincount(labels[part], minlength=4) for part in by_classes_held(labels, held, 0)]
    # 30 : 10 of class 0 are 3000 of 4000, give or take 27; 1 : 10 of class 1 are 191, 13.
    assert counts[0] == pytest.approx([3000, 191, 0, 0], abs=100)
    assert counts[2] == pytest.approx([1000, 1909, 0, 0], abs=100)
    assert [counts[1].tolist(), counts[3].tolist()] == [[0, 0, 0, 0], [0, 0, 5, 0]]
    assert abs(counts[0][1] - 191) < 65


def test_a_device_s_samples_are_not_sorted():
    labels = np.repeat([0, 1], 100)
    for part in by_classes_held(labels, [np.array([0, 1]), np.array([0, 1])], 0):
        first, second = np.array_split(labels[part], 2)
        assert 0.2 < first.mean() < 0.8
        assert 0.2 < second.mean() < 0.8
        assert list(part) != sorted(part)


def test_the_shares_are_those_recorded_in_another_process():
    held = [np.array(labels) for labels in ([0, 1, 1], [2, 0], [0, 2, 1])]
    found = as_lists(by_classes_held(LABELS[:12], held, 0))
    assert found == [[0, 10, 9, 1, 3, 4], [8, 2, 5], [7, 6, 11]]


def test_a_hundred_thousand_devices_share_the_samples():
    held = list(np.arange(100_000)[:, None] % 3)
    found = by_classes_held(LABELS, held, 0)
    holders = [device for device, part in enumerate(found) if len(part)]
    assert sum(map(len, found)) == 60
    assert all(set(LABELS[found[device]]) == {device % 3} for device in holders)
