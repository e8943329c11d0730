from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.data.images import Images
from dccl_flower.data.plan import make_plan
from dccl_flower.image_config import ImageConf, ImageDevicesConf, SplitConf
from dccl_flower.image_experiment import EVALUATION_BATCH, ImageExperiment

SIZE, CLASSES = 600, 6
LABELS = np.arange(SIZE) % CLASSES
TEST_LABELS = np.arange(240) % CLASSES
WRITERS = np.arange(SIZE) // 50
SOME_CLASSES = {"partitioner": "pathological", "count": 6, "classes_per_device": 2}


def numbered(size, first):
    """Return images whose two pixels tell their number."""
    numbers = np.arange(first, first + size)
    return np.stack([numbers // 256, numbers % 256], axis=1).reshape(size, 1, 2, 1).astype(np.uint8)


IMAGES = Images(
    "images-0", numbered(SIZE, 0), LABELS, numbered(240, 1000), TEST_LABELS, groups=WRITERS
)


def experiment_of(seed=0, train_fraction=1.0, scores_unseen=False, **devices):
    conf = ImageConf(seed=seed, devices=ImageDevicesConf(**{"count": 6, **devices}))
    conf.split = SplitConf(by="fraction", device_fraction=0.5)
    conf.data.train_fraction = train_fraction
    return ImageExperiment(conf, IMAGES, make_plan(conf, IMAGES), scores_unseen)


def parts_of(experiment):
    count = experiment.conf.devices.count
    return [experiment.device_test_loader(device).rows.tolist() for device in range(count)]


def assert_shows(loader, images, labels):
    """Check that the pixels and targets of a loader are those of its rows."""
    for number, (pixels, targets) in enumerate(loader):
        rows = loader.rows[number * loader.batch_size :][: len(pixels)]
        scale, shift = (torch.from_numpy(each) for each in (loader.std, loader.mean))
        shown = (pixels[:, 0, 0] * scale + shift) * 255
        assert torch.allclose(shown, torch.from_numpy(images[rows, 0, :, 0]).float(), atol=0.01)
        assert targets.tolist() == labels[rows].tolist()


@pytest.mark.parametrize(
    "devices",
    [
        {"partitioner": "iid"},
        {"partitioner": "dirichlet", "alpha": 1.0},
        {"partitioner": "natural"},
        {"partitioner": "draws", "samples": 20},
        SOME_CLASSES,
    ],
)
def test_every_test_image_is_on_one_device_that_holds_its_class(devices):
    experiment = experiment_of(**devices)
    parts = parts_of(experiment)
    assert sorted(chain(*parts)) == list(range(240))
    for part, rows in zip(parts, experiment.plan.devices, strict=True):
        assert set(TEST_LABELS[part]) <= set(LABELS[rows])
    assert parts == parts_of(experiment_of(**devices))
    assert parts != parts_of(experiment_of(seed=1, **devices))


def test_a_device_s_test_images_are_those_of_the_test_set():
    loader = experiment_of().device_test_loader(2)
    assert (loader.batch_size, loader.is_fixed) == (EVALUATION_BATCH, True)
    assert len(loader.rows) > 0
    assert_shows(loader, IMAGES.test, TEST_LABELS)


def test_test_images_of_a_class_that_no_device_holds_are_with_nobody():
    experiment = experiment_of()
    held = [rows[LABELS[rows] < 2] for rows in experiment.plan.devices]
    few = replace(experiment, plan=replace(experiment.plan, devices=held))
    assert sorted(chain(*parts_of(few))) == np.flatnonzero(TEST_LABELS < 2).tolist()


def test_a_device_may_have_no_test_image():
    experiment = experiment_of(count=3)
    held = [np.flatnonzero(LABELS == 0), np.flatnonzero(LABELS == 1), np.array([], dtype=int)]
    loader = replace(experiment, plan=replace(experiment.plan, devices=held)).device_test_loader(2)
    assert (loader.num_samples, len(loader), list(loader)) == (0, 0, [])


def test_devices_score_by_unseen_images_where_the_experiment_does():
    experiment = experiment_of(train_fraction=0.5, scores_unseen=True)
    parts, unseen = parts_of(experiment), experiment.unseen_loader().rows
    assert sorted(chain(*parts)) == sorted(unseen)
    assert_shows(experiment.device_test_loader(0), IMAGES.train, LABELS)


def test_test_images_are_shared_out_once(monkeypatch):
    experiment = experiment_of()
    first = experiment.device_test_loader(0).rows
    monkeypatch.setattr(ImageExperiment, "scoring_loader", lambda _: pytest.fail("shared again"))
    assert np.array_equal(experiment.device_test_loader(0).rows, first)


@pytest.mark.parametrize(
    "devices", [{"partitioner": "iid"}, {"partitioner": "draws"}, SOME_CLASSES]
)
def test_the_cloud_s_clients_share_its_samples(devices):
    experiment = experiment_of(**devices)
    for clients, rows in (
        (experiment.cloud_clients(8, "clients"), experiment.plan.cloud),
        (experiment.validation_clients(3, "clients"), experiment.plan.validation),
    ):
        assert len(clients) in (3, 8)
        assert set(np.concatenate(clients)) <= set(rows)
        assert len(np.unique(np.concatenate(clients))) == sum(map(len, clients))
        if devices == SOME_CLASSES:
            assert [len(np.unique(LABELS[part])) for part in clients] == [2] * len(clients)


def test_the_cloud_s_clients_follow_the_seed_and_are_not_the_devices():
    lists = [
        [part.tolist() for part in experiment_of(seed=seed).cloud_clients(6, "clients")]
        for seed in (0, 0, 1)
    ]
    assert lists[0] == lists[1] != lists[2]


def test_every_writer_of_the_cloud_s_is_a_client():
    experiment = experiment_of(partitioner="natural", count=5)
    for clients, rows in (
        (experiment.cloud_clients(1, "clients"), experiment.plan.cloud),
        (experiment.validation_clients(1, "clients"), experiment.plan.validation),
    ):
        assert sorted(WRITERS[part[0]] for part in clients) == np.unique(WRITERS[rows]).tolist()
        assert np.array_equal(np.sort(np.concatenate(clients)), rows)
        assert all(len(np.unique(WRITERS[part])) == 1 for part in clients)


def test_more_clients_than_the_cloud_has_samples_are_refused():
    experiment = experiment_of()
    for of_side, rows in (
        (experiment.cloud_clients, experiment.plan.cloud),
        (experiment.validation_clients, experiment.plan.validation),
    ):
        with pytest.raises(ConfError) as caught:
            of_side(len(rows) + 1, "clients")
        line = f"clients={len(rows) + 1}: there are only {len(rows)} samples to share"
        assert str(caught.value) == line


def test_training_images_come_in_the_order_asked_for():
    experiment = experiment_of()
    loader = experiment.training_loader(np.array([7, 3, 5]), 2)
    assert [targets.tolist() for _, targets in loader] == [[1, 3], [5]]
    assert_shows(loader, IMAGES.train, LABELS)


def test_size_and_pixels_may_be_those_of_the_base_model():
    model = ["model.base=timm/vit_tiny_patch16_224", "data.normalise=model", "data.rgb=true"]
    conf = load_conf("digits", [*model, "data.image_size=model"])
    experiment = ImageExperiment.open(conf)
    assert experiment.images.shape == (3, 224, 224)
    assert experiment.facts()["mean"] == [0.5, 0.5, 0.5]


def test_a_model_without_images_of_its_own_is_refused():
    for change in ("model.base=vgg16_cifar", "model.base=timm/resnet18"):
        with pytest.raises(ConfError, match=r"^data.normalise=model: model.base=.* 1 channels"):
            ImageExperiment.open(load_conf("digits", ["data.normalise=model", change]))
