import numpy as np
import pytest

from dccl_flower.config import ConfError, DevicesConf
from dccl_flower.data.partition import partition

# Thirty device samples among sixty: ten each of classes 0, 1, 2. Six people wrote them: 2 and 7
# three samples each, 3 to 6 six samples each.
LABELS = np.tile(np.arange(3), 20)
ROWS = np.arange(15, 45)
GROUPS = np.arange(60) // 6


def parts(seed=0, groups=GROUPS, rows=ROWS, **devices):
    return partition(rows, LABELS, groups, DevicesConf(**devices), seed)


def refusal(**options):
    with pytest.raises(ConfError) as caught:
        parts(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "devices",
    [
        {"partitioner": "iid", "count": 7},
        {"partitioner": "iid", "count": 1},
        {"partitioner": "iid", "count": 30},
        {"partitioner": "dirichlet", "count": 4, "alpha": 1.0},
        {"partitioner": "pathological", "count": 6, "classes_per_device": 2},
        {"partitioner": "natural", "count": 6},
    ],
)
def test_every_device_sample_is_on_exactly_one_device(devices):
    found = parts(**devices)
    assert len(found) == devices["count"]
    assert all(len(part) > 0 for part in found)
    assert np.array_equal(np.sort(np.concatenate(found)), ROWS)
    assert all(part.dtype == np.int64 for part in found)


@pytest.mark.parametrize(
    "devices",
    [
        {"partitioner": "iid", "count": 4},
        {"partitioner": "dirichlet", "count": 4, "alpha": 1.0},
        {"partitioner": "pathological", "count": 6, "classes_per_device": 2},
    ],
)
def test_the_partition_follows_the_seed_alone(devices):
    first, again, other = (parts(seed=seed, **devices) for seed in (1, 1, 2))
    assert list(map(list, first)) == list(map(list, again))
    assert list(map(list, first)) != list(map(list, other))


def test_the_sizes_of_a_dirichlet_draw_follow_the_seed():
    devices = {"partitioner": "dirichlet", "count": 4, "alpha": 1.0}
    sizes = {tuple(len(part) for part in parts(seed=seed, **devices)) for seed in range(4)}
    assert len(sizes) > 1


def test_iid_parts_are_of_equal_size_up_to_one():
    assert sorted(len(part) for part in parts(partitioner="iid", count=4)) == [7, 7, 8, 8]


def test_iid_parts_are_shuffled():
    first = parts(partitioner="iid", count=2)[0]
    assert set(first) not in (set(ROWS[:15]), set(ROWS[15:]))
    assert list(first) != sorted(first)


def test_a_small_alpha_gives_more_skew_than_a_large_one():
    def largest_class_share(alpha):
        found = parts(partitioner="dirichlet", count=3, alpha=alpha)
        return np.mean([np.bincount(LABELS[part]).max() / len(part) for part in found])

    # Three classes even: a third. One class a device: one.
    assert largest_class_share(1000.0) < 0.5 < largest_class_share(0.3)


@pytest.mark.parametrize("classes", [1, 2])
def test_pathological_devices_hold_so_many_classes(classes):
    found = parts(partitioner="pathological", count=6, classes_per_device=classes)
    assert [len(np.unique(LABELS[part])) for part in found] == [classes] * 6


def test_a_natural_device_holds_all_of_one_writer():
    found = parts(partitioner="natural", count=6)
    for part in found:
        assert sorted(part) == ROWS[GROUPS[ROWS] == GROUPS[part[0]]].tolist()
    assert sorted(map(len, found)) == [3, 3, 6, 6, 6, 6]


def test_natural_devices_may_be_fewer_than_writers():
    found = parts(partitioner="natural", count=2)
    assert [len(np.unique(GROUPS[part])) for part in found] == [1, 1]


def test_natural_devices_beyond_the_writers_are_refused():
    assert refusal(partitioner="natural", count=7) == (
        "devices.count=7: the devices' data have 6 ids"
    )


def test_natural_devices_need_a_group_column():
    message = refusal(partitioner="natural", count=2, groups=None)
    assert message == "devices.partitioner=natural: needs data.group_column"


@pytest.mark.parametrize("partitioner", ["iid", "dirichlet", "pathological", "natural"])
def test_more_devices_than_samples_are_refused(partitioner):
    message = refusal(partitioner=partitioner, count=31)
    assert message == "devices.count=31: there are only 30 samples to share"


def test_more_classes_a_device_than_there_are_is_refused():
    message = refusal(partitioner="pathological", count=3, classes_per_device=5)
    assert message.startswith("devices.partitioner=pathological: ")


@pytest.mark.filterwarnings("ignore:The specified min_partition_size")
def test_a_dirichlet_draw_that_leaves_devices_empty_is_refused():
    message = refusal(partitioner="dirichlet", count=30, alpha=0.01)
    assert message.startswith("devices.partitioner=dirichlet: ")


def test_natural_devices_are_drawn_by_the_seed():
    drawn = {
        tuple(GROUPS[part[0]] for part in parts(partitioner="natural", count=2, seed=seed))
        for seed in range(8)
    }
    assert len(drawn) > 4
    first, again = (parts(partitioner="natural", count=2, seed=3) for _ in range(2))
    assert list(map(list, first)) == list(map(list, again))


@pytest.mark.parametrize(
    ("partitioner", "expected"),
    [
        ("iid", [[15, 22, 21, 20], [24, 26, 23, 18], [17, 16, 25, 19]]),
        ("dirichlet", [[15, 24, 22, 21], [26, 20, 25, 16], [17, 23, 18, 19]]),
        ("pathological", [[15, 22, 16, 21], [20, 19, 26, 25], [17, 24, 23, 18]]),
    ],
)
def test_other_partitions_are_those_recorded(partitioner, expected):
    found = parts(rows=ROWS[:12], partitioner=partitioner, count=3, alpha=1.0)
    assert [part.tolist() for part in found] == expected
