import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.data.partition import partition
from dccl_flower.image_config import ImageDevicesConf

# Thirty device samples among sixty: ten each of classes 0, 1, 2. Six people wrote them: 2 and 7
# three samples each, 3 to 6 six samples each.
LABELS = np.tile(np.arange(3), 20)
ROWS = np.arange(15, 45)
GROUPS = np.arange(60) // 6


def parts(seed=0, groups=GROUPS, rows=ROWS, **devices):
    return partition(rows, LABELS, groups, ImageDevicesConf(**devices), seed)


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


ONE_CLASS = {"partitioner": "pathological", "count": 6, "classes_per_device": 1}
OF_LABELS = [
    {"partitioner": "iid", "count": 4},
    {"partitioner": "dirichlet", "count": 4, "alpha": 1.0},
    ONE_CLASS,
]


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(OF_LABELS), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_a_device_keeps_its_share_and_its_size(devices, heterogeneity, seed):
    own = parts(seed=seed, **devices)
    mixed = parts(seed=seed, heterogeneity=heterogeneity, **devices)
    assert [*map(len, mixed)] == [*map(len, own)]
    assert np.array_equal(np.sort(np.concatenate(mixed)), ROWS)
    for before, after in zip(own, mixed, strict=True):
        assert len(np.intersect1d(before, after)) >= round(len(before) * heterogeneity)


@pytest.mark.parametrize("devices", OF_LABELS)
def test_a_device_that_keeps_all_has_its_samples_in_their_order(devices):
    own, same = parts(**devices), parts(heterogeneity=1.0, **devices)
    assert [*map(list, same)] == [*map(list, own)]


def test_a_mixed_partition_follows_the_seed_alone():
    first, again, other = (parts(seed=seed, heterogeneity=0.5, **ONE_CLASS) for seed in (1, 1, 2))
    assert [*map(list, first)] == [*map(list, again)]
    assert [*map(list, first)] != [*map(list, other)]


# Six devices of two hundred samples, each of one class of three.
MANY_LABELS = np.repeat(np.arange(3), 400)


@pytest.mark.parametrize(
    ("heterogeneity", "of_own_class"), [(1.0, 1.0), (0.5, 0.5 + 0.5 / 3), (0.0, 1 / 3)]
)
def test_what_is_mixed_is_of_all_classes_alike(heterogeneity, of_own_class):
    conf = ImageDevicesConf(**ONE_CLASS, heterogeneity=heterogeneity)
    found = partition(np.arange(1200), MANY_LABELS, None, conf, 0)
    shares = np.array([np.bincount(MANY_LABELS[part], minlength=3) / len(part) for part in found])
    # Five standard deviations of a third among two hundred are 0.17, of the mean of six 0.07.
    assert shares.max(axis=1).mean() == pytest.approx(of_own_class, abs=0.07)
    others = (1 - of_own_class) / 2
    assert np.sort(shares, axis=1)[:, 0] == pytest.approx(np.full(6, others), abs=0.17)


def test_what_a_device_keeps_does_not_come_first():
    # Half is its own class: in order of keeping, the second half would have all other classes.
    conf = ImageDevicesConf(**ONE_CLASS, heterogeneity=0.5)
    for part in partition(np.arange(1200), MANY_LABELS, None, conf, 0):
        labels = MANY_LABELS[part]
        own = np.bincount(labels).argmax()
        first, second = (np.mean(half == own) for half in np.split(labels, 2))
        assert abs(first - second) < 0.3


def test_mixed_parts_are_those_recorded_in_another_process():
    found = parts(rows=ROWS[:12], partitioner="pathological", count=3, heterogeneity=0.5)
    assert [part.tolist() for part in found] == [
        [22, 21, 15, 24],
        [26, 19, 17, 25],
        [20, 23, 18, 16],
    ]


@pytest.mark.parametrize("partitioner", ["iid", "natural"])
def test_a_refusal_names_the_key_that_asks_for_so_many(partitioner):
    conf = ImageDevicesConf(partitioner=partitioner, count=31)
    with pytest.raises(ConfError) as caught:
        partition(ROWS, LABELS, GROUPS, conf, 0, "cloud.clients")
    assert str(caught.value) == "cloud.clients=31: there are only 30 samples to share"
