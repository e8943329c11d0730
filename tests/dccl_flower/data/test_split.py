import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.data.split import hold_out, numbered, split_sides, subset
from dccl_flower.image_config import SplitConf

# Six samples of class 0, six of class 1, ten of class 2.
LABELS = np.repeat([0, 1, 2], [6, 6, 10])
EVERY_ROW = np.arange(len(LABELS))


def by_classes(mix, cloud=(0, 1), devices=(2,), rows=EVERY_ROW, seed=0):
    conf = SplitConf(cloud_classes=list(cloud), device_classes=list(devices), mix=mix)
    return split_sides(LABELS, rows, conf, seed)


def by_fraction(fraction, rows=EVERY_ROW, seed=0):
    return split_sides(LABELS, rows, SplitConf(by="fraction", device_fraction=fraction), seed)


def per_class(rows):
    return np.bincount(LABELS[rows], minlength=3).tolist()


def refusal(**options):
    with pytest.raises(ConfError) as caught:
        by_classes(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_mix_each_side_holds_all_of_its_classes():
    sides = by_classes(mix=0)
    assert sides.cloud.tolist() == list(range(12))
    assert sides.devices.tolist() == list(range(12, 22))


def test_mix_replaces_device_samples_by_equal_numbers_of_each_cloud_class():
    # 40 % of ten device samples: four go, and two each of class 0 and class 1 come.
    sides = by_classes(mix=0.4)
    assert per_class(sides.devices) == [2, 2, 6]
    assert per_class(sides.cloud) == [4, 4, 0]


def test_mixed_in_samples_leave_the_cloud_and_displaced_ones_are_unused():
    sides = by_classes(mix=0.4)
    mixed_in = sides.devices[sides.devices < 12]
    assert np.array_equal(np.union1d(sides.cloud, mixed_in), np.arange(12))
    unused = np.setdiff1d(EVERY_ROW, np.union1d(sides.cloud, sides.devices))
    assert per_class(unused) == [0, 0, 4]


def test_an_odd_sample_of_the_mix_comes_from_the_first_class():
    assert per_class(by_classes(mix=0.3).devices) == [2, 1, 7]
    assert per_class(by_classes(mix=0.3, cloud=(1, 0)).devices) == [2, 1, 7]


def test_a_full_mix_leaves_the_devices_no_sample_of_their_own():
    assert per_class(by_classes(mix=1).devices) == [5, 5, 0]


def test_the_mix_counts_only_the_rows_in_use():
    rows = np.array([0, 1, 2, 6, 7, 8, 12, 13, 14, 15])
    sides = by_classes(mix=0.5, rows=rows)
    assert per_class(sides.devices) == [1, 1, 2]
    assert np.isin(np.concatenate([sides.cloud, sides.devices]), rows).all()


def test_indices_and_classes_come_sorted():
    sides = by_classes(mix=0.4, cloud=(1, 0), devices=(2,))
    assert (sides.cloud_classes, sides.device_classes) == ([0, 1], [2])
    assert np.array_equal(sides.devices, np.sort(sides.devices))
    assert np.array_equal(sides.cloud, np.sort(sides.cloud))


@pytest.mark.parametrize(
    "draw", [lambda s: by_classes(0.4, seed=s), lambda s: by_fraction(0.5, seed=s)]
)
def test_the_draw_follows_the_seed_alone(draw):
    assert np.array_equal(draw(1).devices, draw(1).devices)
    assert not np.array_equal(draw(1).devices, draw(2).devices)


def test_by_fraction_the_devices_get_their_share_and_the_cloud_the_rest():
    sides = by_fraction(0.25)
    assert len(sides.devices) == 6  # 5.5, rounded to even
    assert np.array_equal(np.union1d(sides.cloud, sides.devices), EVERY_ROW)
    assert np.intersect1d(sides.cloud, sides.devices).size == 0


def test_by_fraction_both_sides_stand_for_every_class():
    sides = by_fraction(0.5)
    assert sides.cloud_classes == sides.device_classes == [0, 1, 2]


def test_by_fraction_only_the_rows_in_use_are_shared_out():
    rows = np.arange(3, 13)
    sides = by_fraction(0.5, rows=rows)
    assert np.array_equal(np.union1d(sides.cloud, sides.devices), rows)
    assert len(sides.devices) == 5


def test_a_class_in_both_lists_is_refused():
    message = refusal(mix=0, cloud=(0, 1), devices=(1, 2))
    assert message == "split.device_classes=[1, 2]: class 1 is in split.cloud_classes too"


def test_a_class_in_neither_list_is_refused():
    message = refusal(mix=0, cloud=(0,), devices=(2,))
    assert message == "split.device_classes=[2]: class 1 is in neither list"


@pytest.mark.parametrize(
    ("key", "lists"),
    [("cloud_classes", {"cloud": ()}), ("device_classes", {"devices": ()})],
)
def test_an_empty_list_is_refused(key, lists):
    message = refusal(mix=0, **lists)
    assert message == f"split.{key}=[]: must name at least one class of [0, 1, 2]"


@pytest.mark.parametrize(
    ("key", "lists"),
    [("cloud_classes", {"cloud": (0, 1, 3)}), ("device_classes", {"devices": (2, 3)})],
)
def test_a_class_that_the_data_lack_is_refused(key, lists):
    message = refusal(mix=0, **lists)
    assert message.startswith(f"split.{key}=[")
    assert message.endswith("class 3 is not among [0, 1, 2]")


def test_a_mix_that_the_cloud_cannot_serve_is_refused():
    # All ten samples of class 2 would have to come from the six of class 0.
    labels = LABELS[LABELS != 1]
    conf = SplitConf(cloud_classes=[0], device_classes=[2], mix=1.0)
    with pytest.raises(ConfError) as caught:
        split_sides(labels, np.arange(len(labels)), conf, 0)
    assert str(caught.value) == "split.mix=1.0: needs 10 samples of class 0, there are 6"


NAMES = ["plane", "car", "7"]


@pytest.mark.parametrize(
    ("cloud", "devices", "expected"),
    [
        (["plane"], ["car", "7"], ([0], [1, 2])),
        ("rest", ["car"], ([0, 2], [1])),
        ([0, "car"], "rest", ([0, 1], [2])),
        (["plane", 1], [7], ([0, 1], [2])),
        (["0-1"], ["2-2"], ([0, 1], [2])),
    ],
)
def test_classes_go_by_name_or_number_or_are_the_rest(cloud, devices, expected):
    found = numbered(SplitConf(cloud_classes=cloud, device_classes=devices), NAMES)
    assert (found.cloud_classes, found.device_classes) == expected


def test_a_class_of_an_unknown_name_is_refused_with_all_names():
    with pytest.raises(ConfError) as caught:
        numbered(SplitConf(cloud_classes="rest", device_classes=["cat"]), NAMES)
    told = "split.device_classes=['cat']: class cat is not among 0, 1, 2, plane, car, 7"
    assert str(caught.value) == told


def test_a_range_beyond_the_classes_is_refused():
    with pytest.raises(
        ConfError, match=r"^split\.cloud_classes=\['0-3'\]: class 3 is not among 0, "
    ):
        numbered(SplitConf(cloud_classes=["0-3"], device_classes="rest"), NAMES)


def test_a_range_that_ends_before_it_begins_is_no_class():
    with pytest.raises(ConfError, match="class 2-1 is not among"):
        numbered(SplitConf(cloud_classes=["2-1"], device_classes="rest"), NAMES)


def test_both_sides_cannot_be_the_rest():
    with pytest.raises(ConfError, match=r"^split\.cloud_classes=rest: one side must name"):
        numbered(SplitConf(cloud_classes="rest", device_classes="rest"), NAMES)


def test_a_class_named_twice_is_refused():
    assert "split.cloud_classes=[0, 0, 1]" in refusal(mix=0.8, cloud=(0, 0, 1))


def test_hold_out_takes_the_share_of_every_class():
    training, validation = hold_out(LABELS, EVERY_ROW, 0.5, seed=0)
    assert per_class(validation) == [3, 3, 5]
    assert np.array_equal(np.union1d(training, validation), EVERY_ROW)
    assert np.intersect1d(training, validation).size == 0


def test_hold_out_takes_at_least_one_sample_of_every_class_there():
    rows = np.arange(2, 12)
    training, validation = hold_out(LABELS, rows, 0.01, seed=0)
    assert per_class(validation) == [1, 1, 0]
    assert len(training) == 8


def test_hold_out_follows_the_seed_alone():
    first, again, other = (hold_out(LABELS, EVERY_ROW, 0.5, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_whole_subset_is_every_row():
    assert np.array_equal(subset(LABELS, 1.0, seed=0), EVERY_ROW)


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.5, [3, 3, 5]), (0.34, [2, 2, 3]), (0.001, [1, 1, 1])]
)
def test_a_subset_keeps_the_share_of_every_class_and_at_least_one(fraction, counts):
    rows = subset(LABELS, fraction, seed=0)
    assert per_class(rows) == counts
    assert np.array_equal(rows, np.unique(rows))


def test_a_subset_follows_the_seed_alone():
    first, again, other = (subset(LABELS, 0.5, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@st.composite
def federations(draw):
    """Labels of two to five classes, each class on one side, and a mix."""
    num_classes = draw(st.integers(2, 5))
    first_device_class = draw(st.integers(1, num_classes - 1))
    more = draw(st.lists(st.integers(0, num_classes - 1), max_size=60))
    labels = np.array([*range(num_classes), *more])
    classes = draw(st.permutations(range(num_classes)))
    conf = SplitConf(
        by=draw(st.sampled_from(["classes", "fraction"])),
        cloud_classes=classes[:first_device_class],
        device_classes=classes[first_device_class:],
        mix=draw(st.floats(0, 1)),
        device_fraction=draw(st.floats(0.01, 0.99)),
    )
    return labels, conf, draw(st.integers(0, 1000))


@settings(deadline=None)
@given(federations(), st.floats(0.01, 0.99))
def test_no_sample_is_ever_on_two_sides(federation, share):
    labels, conf, seed = federation
    rows = subset(labels, 0.8, seed)
    try:
        sides = split_sides(labels, rows, conf, seed)
        training, validation = hold_out(labels, sides.cloud, share, seed)
    except ConfError:
        assume(False)
    used = np.concatenate([training, validation, sides.devices])
    assert len(np.unique(used)) == len(used)
    assert np.isin(used, rows).all()
    assert len(training) + len(validation) == len(sides.cloud)


@settings(deadline=None)
@given(federations())
def test_a_mix_never_changes_the_number_of_device_samples(federation):
    labels, conf, seed = federation
    conf.by = "classes"
    rows = np.arange(len(labels))
    own = np.isin(labels, conf.device_classes)
    mixed_in = round(own.sum() * conf.mix)
    try:
        sides = split_sides(labels, rows, conf, seed)
    except ConfError:
        smallest = min((labels == label).sum() for label in conf.cloud_classes)
        assert mixed_in > smallest * len(conf.cloud_classes)
        return
    assert len(sides.devices) == own.sum()
    assert np.isin(sides.devices, rows[~own]).sum() == mixed_in
    assert len(sides.cloud) == (~own).sum() - mixed_in


def test_sides_without_groups_are_those_recorded():
    sides = by_classes(mix=0.4)
    assert sides.cloud.tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    assert sides.devices.tolist() == [0, 5, 10, 11, 12, 13, 14, 16, 18, 19]
    assert by_fraction(0.25).devices.tolist() == [1, 3, 15, 18, 20, 21]


# Eleven people; person n wrote samples n and n + 11.
WRITERS = np.arange(22) % 11


def by_people(count=3, seed=0, groups=WRITERS, **options):
    conf = SplitConf(**{"cloud_classes": [0, 1], "device_classes": [2], "mix": 0.0, **options})
    return split_sides(LABELS, EVERY_ROW, conf, seed, groups, count)


def test_by_classes_the_devices_are_so_many_people_and_the_cloud_has_nothing_of_theirs():
    sides = by_people()
    people = set(WRITERS[sides.devices])
    assert len(people) == 3
    assert np.array_equal(sides.devices, EVERY_ROW[np.isin(WRITERS, [*people]) & (LABELS == 2)])
    assert np.array_equal(sides.cloud, EVERY_ROW[~np.isin(WRITERS, [*people]) & (LABELS < 2)])


def test_a_mix_comes_from_the_same_people():
    # All ten with class 2: people 1 to 10, of whom 1 to 5 wrote class 0 and 6 to 10 class 1.
    sides = by_people(count=10, mix=0.4)
    assert per_class(sides.devices) == [2, 2, 6]
    assert sides.cloud.tolist() == [0, 11]  # of person 0, who wrote classes 0 and 1


def test_a_mix_that_these_people_cannot_serve_is_refused():
    with pytest.raises(ConfError, match=r"^split\.mix=1\.0: needs \d samples of class \d, there"):
        by_people(count=1, groups=np.r_[np.zeros(6), np.ones(6), np.full(10, 2)], mix=1.0)


def test_by_fraction_people_are_drawn_until_the_share_is_reached():
    # Of 22 samples 5.5, rounded to 6: three people of two samples each.
    for seed in range(5):
        sides = by_people(by="fraction", device_fraction=0.25, seed=seed)
        assert len(sides.devices) == 6
        assert not set(WRITERS[sides.devices]) & set(WRITERS[sides.cloud])
        assert np.array_equal(np.union1d(sides.devices, sides.cloud), EVERY_ROW)


def test_people_are_drawn_by_the_seed():
    for options in ({}, {"by": "fraction"}):
        drawn = {tuple(by_people(seed=seed, **options).devices) for seed in range(5)}
        assert len(drawn) > 1
        again = by_people(seed=1, **options).devices
        assert np.array_equal(again, by_people(seed=1, **options).devices)


def test_more_devices_than_people_with_a_device_class_are_refused():
    with pytest.raises(ConfError) as caught:
        by_people(count=11)
    assert str(caught.value) == "devices.count=11: the devices' data have 10 ids"


@settings(deadline=None)
@given(federations(), st.integers(1, 6), st.integers(1, 4))
def test_nobody_is_ever_on_two_sides(federation, people, count):
    labels, conf, seed = federation
    groups = np.random.default_rng(seed).integers(0, people, len(labels))
    rows = subset(labels, 0.8, seed)
    try:
        sides = split_sides(labels, rows, conf, seed, groups, count)
    except ConfError:
        assume(False)
    assert not set(groups[sides.devices]) & set(groups[sides.cloud])
    assert np.isin(np.concatenate([sides.cloud, sides.devices]), rows).all()
    if conf.by == "classes":
        assert len(set(groups[sides.devices])) <= count
    else:
        assert len(sides.devices) >= round(len(rows) * conf.device_fraction)
