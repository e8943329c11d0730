from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower.data.batches import as_batches
from dccl_flower.data.loader import ImageLoader
from dccl_flower.learning.exemplars import (
    balanced_rows,
    class_counts,
    exemplar_images,
    replayed_counts,
    with_exemplars,
)

MEAN, STD = np.array([0.5], dtype=np.float32), np.array([0.25], dtype=np.float32)
ROWS = np.array([7, 2, 9, 4, 0, 5])
LABELS = torch.tensor([1, 0, 1, 1, 2, 1])  # of the samples in ROWS


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def image_loader(augment="none"):
    """Ten 4x4 images, each filled with its own number; six of them are the loader's."""
    images = np.arange(10, dtype=np.uint8).repeat(16).reshape(10, 4, 4, 1)
    return ImageLoader(images, ROWS, LABELS, 4, MEAN, STD, augment)


def data_loader(**options):
    """The same labels on images of one pixel, which holds the number of the image."""
    images = torch.from_numpy(ROWS).float().view(-1, 1)
    return as_batches(DataLoader(TensorDataset(images, LABELS), 4, **options))


def balanced(count):
    return lambda loader: balanced_rows(loader.targets, count, generator())


def take_exemplars(batches, choose):
    """Take samples as a cloud does: chosen by their positions in one pass."""
    batches = batches.in_fixed_order()
    return batches.taken(choose(batches))


def label_of(number):
    return LABELS[ROWS.tolist().index(int(number))].item()


@pytest.mark.parametrize(
    "loader", [image_loader(), data_loader(), data_loader(shuffle=True), list(iter(data_loader()))]
)
def test_counts_of_every_kind_of_loader(loader):
    loader = as_batches(loader)
    assert class_counts(loader, 4).tolist() == [1, 4, 1, 0]
    assert sorted(loader.targets.tolist()) == sorted(LABELS.tolist())
    assert loader.num_samples == 6


def test_an_image_loader_is_counted_without_reading_an_image():
    unreadable = ImageLoader(np.zeros((0, 4, 4, 1), np.uint8), ROWS, LABELS, 4, MEAN, STD)
    assert class_counts(unreadable, 3).tolist() == [1, 4, 1]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 50), st.integers(0, 99))
def test_balanced_rows_spread_as_evenly_as_the_classes_reach(labels, count, seed):
    labels = torch.tensor(labels)
    rows = balanced_rows(labels, count, generator(seed))
    assert len(rows) == len(set(rows.tolist())) == min(count, len(labels))
    available = torch.bincount(labels, minlength=5)
    taken = torch.bincount(labels[rows], minlength=5)
    # A class stays more than one behind another only where it is used up.
    assert ((taken == available) | (taken >= taken.max() - 1)).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 99), st.data())
def test_balanced_rows_differ_by_one_at_most_where_classes_have_enough(classes, each, seed, data):
    labels = torch.arange(classes).repeat(each)
    count = data.draw(st.integers(1, len(labels)))
    taken = torch.bincount(labels[balanced_rows(labels, count, generator(seed))])
    taken = torch.cat([taken, torch.zeros(classes - len(taken), dtype=torch.long)])
    assert taken.max() - taken.min() <= 1


def test_balanced_rows_are_drawn_at_random_by_the_generator_alone():
    labels = torch.arange(3).repeat(20)
    first = balanced_rows(labels, 9, generator(1))
    torch.manual_seed(99)
    assert torch.equal(balanced_rows(labels, 9, generator(1)), first)
    assert not torch.equal(balanced_rows(labels, 9, generator(2)), first)


@pytest.mark.parametrize("augment", ["none", "flip_crop"])
def test_exemplars_of_an_image_loader_are_raw_images_with_their_labels(augment):
    exemplars = take_exemplars(image_loader(augment), balanced(3))
    assert exemplars["images"].shape == (3, 4, 4, 1)
    assert exemplars["images"].dtype == torch.uint8
    for image, label in zip(exemplars["images"], exemplars["labels"], strict=True):
        (number,) = image.unique().tolist()
        assert label_of(number) == label
    assert sorted(exemplars["labels"].tolist()) == [0, 1, 2]
    assert exemplars["mean"].tolist() == [0.5]
    assert exemplars["std"].tolist() == [0.25]


@pytest.mark.parametrize("shuffle", [False, True])
def test_exemplars_of_any_other_loader_are_images_as_it_yields_them(shuffle):
    exemplars = take_exemplars(data_loader(shuffle=shuffle), balanced(4))
    assert sorted(exemplars) == ["images", "labels"]
    numbers = exemplars["images"].flatten().tolist()
    assert len(set(numbers)) == 4
    assert [label_of(number) for number in numbers] == exemplars["labels"].tolist()
    assert sorted(exemplars["labels"].tolist()) == [0, 1, 1, 2]


def test_exemplars_are_those_chosen_in_the_order_chosen():
    exemplars = take_exemplars(image_loader(), lambda loader: torch.tensor([4, 0]))
    assert exemplars["images"][:, 0, 0, 0].tolist() == [0, 7]
    assert exemplars["labels"].tolist() == [2, 1]
    exemplars = take_exemplars(data_loader(), lambda loader: torch.tensor([4, 0]))
    assert exemplars["images"].flatten().tolist() == [0.0, 7.0]
    assert exemplars["labels"].tolist() == [2, 1]


def test_a_choice_among_shuffled_samples_is_made_on_the_order_they_came_in():
    # Another pass over the loader gives another order; positions in it would pick others.
    def largest(loader):
        return torch.cat([images for images, _ in loader]).flatten().argsort(descending=True)[:2]

    exemplars = take_exemplars(data_loader(shuffle=True), largest)
    assert exemplars["images"].flatten().tolist() == [9.0, 7.0]
    assert exemplars["labels"].tolist() == [label_of(9), label_of(7)]


def test_more_exemplars_than_samples_are_all_samples():
    exemplars = take_exemplars(image_loader(), balanced(100))
    assert sorted(exemplars["images"][:, 0, 0, 0].tolist()) == sorted(ROWS.tolist())


def test_exemplar_images_are_normalised_by_hand():
    pixels = torch.tensor([0, 255, 51, 204], dtype=torch.uint8).view(1, 2, 2, 1)
    exemplars = {"images": pixels, "mean": torch.tensor([0.5]), "std": torch.tensor([0.25])}
    expected = torch.tensor([[[[-2.0, 2.0], [-1.2, 1.2]]]])
    torch.testing.assert_close(exemplar_images(exemplars), expected)


def test_exemplar_images_keep_channels_apart():
    pixels = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 1, 1, 3)
    mean, std = torch.tensor([0.0, 1.0, 0.2]), torch.tensor([0.5, 0.5, 1.0])
    images = exemplar_images({"images": pixels, "mean": mean, "std": std})
    assert images.shape == (1, 3, 1, 1)
    torch.testing.assert_close(images.flatten(), torch.tensor([2.0, -2.0, 0.0]))


def test_exemplar_images_are_those_of_the_loader_they_come_from():
    exemplars = take_exemplars(image_loader(), balanced(6))
    own = torch.cat([images for images, _ in image_loader()])
    order = [ROWS.tolist().index(n) for n in exemplars["images"][:, 0, 0, 0].tolist()]
    torch.testing.assert_close(exemplar_images(exemplars), own[order])


def test_exemplar_images_without_statistics_are_taken_as_they_are():
    exemplars = take_exemplars(data_loader(), balanced(2))
    assert exemplar_images(exemplars) is exemplars["images"]


def test_every_batch_is_its_own_samples_and_as_many_exemplars():
    exemplars = {"images": -torch.arange(1.0, 8).view(-1, 1), "labels": torch.arange(11, 18)}
    own = list(data_loader())
    joined = list(islice(with_exemplars(as_batches(own), exemplars, generator()), 2))
    assert [len(labels) for _, labels in joined] == [8, 4]
    for (images, labels), (all_images, all_labels) in zip(own, joined, strict=True):
        half = len(labels)
        assert torch.equal(all_images[:half], images)
        assert torch.equal(all_labels[:half], labels)
        assert torch.equal(all_images[half:].flatten(), 10.0 - all_labels[half:])


def test_exemplars_are_drawn_with_replacement_by_the_generator_alone():
    exemplars = {"images": torch.arange(50.0).view(-1, 1), "labels": torch.arange(50)}
    batch = torch.zeros(200, 1), torch.zeros(200, dtype=torch.long)

    def drawn(seed):
        joined = next(with_exemplars(as_batches([batch]), exemplars, generator(seed)))
        return joined[1][200:]

    assert len(drawn(1).unique()) > 30
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_exemplars_are_augmented_as_the_samples_are():
    exemplars = {"images": 1 + torch.rand(5, 1, 4, 4), "labels": torch.arange(5)}
    drawn = {}
    for augment in ("none", "flip_crop"):
        loader = replace(image_loader(augment), batch_size=6)
        images, labels = next(with_exemplars(loader, exemplars, generator()))
        (own, _) = next(loader.epoch(generator()))
        assert torch.equal(images[:6], own)
        drawn[augment] = images[6:], labels[6:]
    assert torch.equal(drawn["none"][0], exemplars["images"][drawn["none"][1]])
    changed = [
        not any(torch.equal(image, known) for known in exemplars["images"])
        for image in drawn["flip_crop"][0]
    ]
    assert sum(changed) > 3


@pytest.mark.parametrize(
    ("counts", "shared", "expected"),
    [
        ([4, 0, 0], [1, 1, 2, 2], [1.0, 0.5, 0.5]),
        ([1, 3, 0], [0, 1, 1, 2], [0.5, 1.25, 0.25]),
        ([0, 0, 7], [0], [1.0, 0.0, 1.0]),
    ],
)
def test_replayed_counts_by_hand(counts, shared, expected):
    weights = replayed_counts(torch.tensor(counts), {"labels": torch.tensor(shared)})
    assert weights.tolist() == pytest.approx(expected)
