from dataclasses import asdict, fields, replace
from importlib.metadata import version

import numpy as np
import pytest

from dccl_flower.config import ConfError
from dccl_flower.data import plan as plan_module
from dccl_flower.data.images import Images
from dccl_flower.data.plan import FORMAT, make_plan, open_plan
from dccl_flower.files import content_key
from dccl_flower.image_config import ImageConf, ImageDevicesConf, SplitConf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCCL_CACHE", str(tmp_path))
    return tmp_path


def make_images(labels, pixels=None, key="images-0", groups=None):
    labels = np.asarray(labels, dtype=np.int64)
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 2, 3, 2))
    pixels = np.asarray(pixels, dtype=np.uint8)
    return Images(key, pixels, labels, pixels[:1], labels[:1], groups)


def make_conf(seed=0, mix=0.2, **devices):
    split = SplitConf(cloud_classes=[0, 1], device_classes=[2], mix=mix)
    return ImageConf(seed=seed, split=split, devices=ImageDevicesConf(**{"count": 3, **devices}))


IMAGES = make_images(np.repeat([0, 1, 2], 10))


def assert_equal(plan, other):
    for field in fields(plan):
        one, two = getattr(plan, field.name), getattr(other, field.name)
        if field.name == "devices":
            assert len(one) == len(two)
            assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
        else:
            assert np.array_equal(one, two)
            assert type(one) is type(two)


@pytest.mark.parametrize("devices", [{}, {"count": 1}, {"partitioner": "dirichlet", "alpha": 0.9}])
def test_a_plan_read_back_equals_the_plan_made(devices):
    conf = make_conf(**devices)
    made, read = make_plan(conf, IMAGES), open_plan(conf, IMAGES)
    assert_equal(made, read)
    assert_equal(read, open_plan(conf, IMAGES))


def test_a_plan_is_made_only_once(monkeypatch):
    open_plan(make_conf(), IMAGES)
    monkeypatch.setattr(plan_module, "make_plan", lambda *_: pytest.fail("made again"))
    open_plan(make_conf(), IMAGES)


@pytest.mark.parametrize(
    ("conf", "images"),
    [
        (make_conf(seed=1), IMAGES),
        (make_conf(mix=0.4), IMAGES),
        (make_conf(count=4), IMAGES),
        (make_conf(heterogeneity=0.5), IMAGES),
        (make_conf(), replace(IMAGES, key="images-1")),
    ],
)
def test_another_seed_split_federation_or_data_set_has_a_plan_of_its_own(cache, conf, images):
    open_plan(make_conf(), IMAGES)
    assert_equal(open_plan(conf, images), make_plan(conf, images))
    assert len(list(cache.glob("plan-*"))) == 2


def test_what_does_not_move_samples_shares_the_plan(cache):
    conf = make_conf()
    open_plan(conf, IMAGES)
    conf.rounds.count, conf.model.base, conf.data.augment = 99, "vgg16_cifar", "flip_crop"
    open_plan(conf, IMAGES)
    assert len(list(cache.glob("plan-*"))) == 1


def test_devices_that_keep_all_of_their_samples_have_the_plan_of_before_they_could_share(cache):
    conf = make_conf()
    open_plan(conf, IMAGES)
    facts = [FORMAT, version("flwr-datasets"), IMAGES.key, 0, asdict(conf.split)]
    assert [path.name for path in cache.glob("plan-*")] == [
        f"plan-{content_key(*facts, 3, 'iid', 0.5, 2, 1.0, 0.1)}"
    ]


def test_every_sample_is_in_one_place_at_most():
    plan = make_plan(make_conf(mix=0.2), IMAGES)
    # Ten samples of class 2: two replaced. Twenty of the cloud's: two gone, 9 + 9 left, one
    # of each class held out.
    assert (len(plan.cloud), len(plan.validation)) == (16, 2)
    assert sum(map(len, plan.devices)) == 10
    used = np.concatenate([plan.cloud, plan.validation, *plan.devices])
    assert len(np.unique(used)) == 28
    assert (plan.cloud_classes, plan.device_classes) == ([0, 1], [2])


def test_the_train_fraction_comes_before_the_split():
    conf = make_conf(mix=0)
    conf.data.train_fraction = 0.5
    plan = make_plan(conf, IMAGES)
    assert len(plan.cloud) + len(plan.validation) == 10
    assert sum(map(len, plan.devices)) == 5


def test_natural_devices_follow_the_groups_of_the_images():
    groups = np.arange(30) // 5
    images = make_images(IMAGES.train_labels, groups=groups)
    plan = make_plan(make_conf(mix=0, count=2, partitioner="natural"), images)
    assert sorted(np.unique(groups[rows]).tolist() for rows in plan.devices) == [[4], [5]]


@pytest.mark.parametrize("split", [{"mix": 0.2}, {"by": "fraction", "device_fraction": 0.5}])
def test_a_natural_device_s_writer_is_on_that_device_and_nowhere_else(split):
    groups = np.arange(30) % 6  # each wrote five samples, of all classes
    conf = make_conf(count=3, partitioner="natural")
    conf.split = SplitConf(cloud_classes=[0, 1], device_classes=[2], **split)
    plan = make_plan(conf, make_images(IMAGES.train_labels, groups=groups))
    writers = [set(groups[rows]) for rows in (plan.cloud, plan.validation, *plan.devices)]
    assert [len(of_one) for of_one in writers[2:]] == [1, 1, 1]
    assert len(set.union(*writers[2:])) == 3
    assert not set.union(*writers[:2]) & set.union(*writers[2:])


def test_natural_devices_need_a_group_column():
    with pytest.raises(ConfError) as caught:
        make_plan(make_conf(partitioner="natural"), IMAGES)
    assert str(caught.value) == "devices.partitioner=natural: needs data.group_column"


def test_mean_and_deviation_are_those_of_the_clouds_pixels():
    # The cloud's images are half 51 (0.2), half 153 (0.6); the devices' images are white.
    labels = np.repeat([0, 1, 2], 10)
    pixels = np.array([51, 153, 255])[labels][:, None, None, None] * np.ones((1, 2, 2, 1))
    plan = make_plan(make_conf(mix=0), make_images(labels, pixels))
    assert plan.mean == pytest.approx([0.4])
    assert plan.std == pytest.approx([0.2])


@pytest.mark.parametrize("batch", [3, 2000])
def test_mean_and_deviation_leave_out_validation_and_mixed_in_samples(monkeypatch, batch):
    monkeypatch.setattr(plan_module, "STATISTICS_BATCH", batch)
    plan = make_plan(make_conf(mix=0.4), IMAGES)
    cloud = IMAGES.train[plan.cloud] / 255
    assert plan.mean == pytest.approx(cloud.mean(axis=(0, 1, 2)), abs=1e-6)
    assert plan.std == pytest.approx(cloud.std(axis=(0, 1, 2)), abs=1e-6)
    assert (plan.mean.dtype, plan.mean.shape) == (np.float32, (2,))
    with_validation = IMAGES.train[np.concatenate([plan.cloud, plan.validation])] / 255
    assert plan.mean != pytest.approx(with_validation.mean(axis=(0, 1, 2)), abs=1e-6)


def test_the_deviation_of_one_flat_colour_is_not_zero():
    images = make_images(IMAGES.train_labels, np.full((30, 2, 2, 1), 51))
    plan = make_plan(make_conf(), images)
    assert plan.mean == pytest.approx([0.2])
    assert plan.std == pytest.approx([0.001])


def test_an_impossible_plan_leaves_nothing_behind(cache):
    with pytest.raises(ConfError, match=r"devices\.count=11"):
        open_plan(make_conf(count=11), IMAGES)
    assert list(cache.glob("plan-*")) == []


def test_a_mix_that_takes_all_that_the_cloud_has_is_refused():
    images = make_images(np.repeat([0, 1, 2], [5, 5, 10]))
    with pytest.raises(ConfError):
        make_plan(make_conf(mix=1.0), images)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_cloud_without_a_training_sample_is_refused():
    images = make_images(np.repeat([0, 1, 2], [1, 1, 10]))
    with pytest.raises(ConfError):
        make_plan(make_conf(mix=0), images)


def test_drawn_devices_may_be_more_than_the_samples(cache):
    conf = make_conf(count=1000, partitioner="draws", samples=7)
    plan, again = make_plan(conf, IMAGES), open_plan(conf, IMAGES)
    assert len(plan.devices) == len(again.devices) == 1000
    for device in (0, 1, 999):
        assert len(plan.devices[device]) == 7
        assert np.array_equal(plan.devices[device], again.devices[device])
        assert set(plan.devices[device]) <= set(plan.device_rows())
    assert not np.array_equal(plan.devices[0], plan.devices[1])
    assert np.array_equal(plan.device_rows(), again.device_rows())


def test_other_numbers_of_draws_are_another_plan(cache):
    few, many = (
        open_plan(make_conf(count=5, partitioner="draws", samples=n), IMAGES) for n in (2, 9)
    )
    assert (len(few.devices[4]), len(many.devices[4])) == (2, 9)


def test_a_device_that_is_not_there_is_an_error():
    plan = make_plan(make_conf(count=3, partitioner="draws"), IMAGES)
    assert [len(rows) for rows in plan.devices] == [50, 50, 50]
    assert len(plan.devices[1:]) == 2
    for device in (-1, 3):
        with pytest.raises(IndexError, match="there are 3"):
            plan.devices[device]
