from __future__ import annotations

from collections import UserDict
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from dccl_flower.data.batches import as_batches, endless
from dccl_flower.data.loader import ImageLoader

IMAGES, LABELS = torch.arange(10.0).view(5, 2), torch.tensor([3, 0, 2, 2, 1])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_batch(images=IMAGES, labels=LABELS):
    return as_batches([(images, labels)])


def refusal(batch, **keys):
    with pytest.raises(ValueError, match=r"\w") as caught:
        list(iter(as_batches([batch], **keys)))
    message = str(caught.value)
    assert "\n" not in message
    return message


class Passes:
    """Batches that count how often they are read; a loader without length or dataset."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield from zip(IMAGES.split(2), LABELS.split(2), strict=True)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(IMAGES, LABELS, strict=True))


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any), st.sampled_from("tdc"))
def test_any_division_into_batches_is_the_same_data(sizes, form):
    labels = torch.arange(sum(sizes)) % 4
    images = torch.arange(3.0 * sum(sizes)).view(-1, 3)
    parts = list(zip(images.split(sizes), labels.split(sizes), strict=True))
    if form == "d":
        parts = [{"img": image, "label": label} for image, label in parts]
    if form == "c":
        parts = [[image, label.unsqueeze(1)] for image, label in parts]
    found = as_batches(parts)
    assert torch.equal(found.targets, labels)
    assert (found.num_samples, len(found)) == (sum(sizes), len(sizes))
    for batches in (iter(found), found.epoch(generator()), iter(found.in_fixed_order())):
        assert torch.equal(torch.cat([image for image, _ in batches]), images)
    chosen = torch.randperm(len(labels), generator=generator())[:3]
    taken = found.taken(chosen)
    assert torch.equal(taken["images"], images[chosen])
    assert torch.equal(taken["labels"], labels[chosen])


def test_what_is_adapted_already_comes_back_as_it_is():
    pixels = np.zeros((5, 2, 2, 1), np.uint8)
    mean, std = np.zeros(1, np.float32), np.ones(1, np.float32)
    own = ImageLoader(pixels, np.arange(5), LABELS, 2, mean, std)
    assert as_batches(own) is own
    foreign = as_batches(DataLoader(TensorDataset(IMAGES, LABELS)))
    assert as_batches(foreign) is foreign
    assert (own.is_fixed, foreign.is_fixed) == (True, False)


def test_nothing_is_read_before_it_is_asked_for_and_then_once():
    source = Passes()
    found = as_batches(source)
    assert source.passes == 0
    passes = []
    for look in (
        lambda: found.targets,
        lambda: found.num_samples,
        lambda: list(found.epoch(generator())),
        lambda: found.taken(torch.tensor([1])),
        found.in_fixed_order,
    ):
        look()
        passes.append(source.passes)
    assert passes == [1, 2, 3, 4, 5]
    held = found.in_fixed_order()
    assert torch.equal(held.targets, held.targets)
    assert source.passes == 6


def test_endless_reads_a_loader_once_an_epoch():
    source = Passes()
    labels = [batch[1].tolist() for batch in islice(endless(source, generator()), 4)]
    assert labels == [[3, 0], [2, 2], [1], [3, 0]]
    assert source.passes == 2


def test_a_loader_s_dataset_tells_its_size_without_a_pass():
    class Unreadable(DataLoader):
        def __iter__(self):
            raise AssertionError("read")

    found = as_batches(Unreadable(TensorDataset(IMAGES, LABELS), 2))
    assert (found.num_samples, len(found)) == (5, 3)


def test_a_stream_is_counted_by_a_pass():
    found = as_batches(DataLoader(Stream(), 2))
    assert (found.num_samples, len(found)) == (5, 3)


def test_a_shuffling_loader_draws_as_if_it_were_iterated_itself():
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 2, shuffle=True)
    torch.manual_seed(7)
    expected = [labels for _ in range(3) for _, labels in loader]
    torch.manual_seed(7)
    found = [labels for _, labels in islice(endless(as_batches(loader), generator()), 9)]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_a_loader_with_epochs_of_its_own_is_asked_for_them():
    class Shuffling(list):
        def epoch(self, draw):
            return [self[place] for place in torch.randperm(len(self), generator=draw)]

    parts = Shuffling(zip(IMAGES.split(1), LABELS.split(1), strict=True))
    found = torch.cat([labels for _, labels in as_batches(parts).epoch(generator(3))])
    assert torch.equal(found, LABELS[torch.randperm(5, generator=generator(3))])


def test_in_fixed_order_a_shuffling_loader_stays_as_it_came():
    loader = as_batches(DataLoader(TensorDataset(IMAGES, LABELS), 2, shuffle=True))
    held = loader.in_fixed_order()
    first, second = (torch.cat([images for images, _ in held]) for _ in range(2))
    assert torch.equal(first, second)
    assert sorted(held.targets.tolist()) == sorted(LABELS.tolist())


@pytest.mark.parametrize("keys", [("image", "label"), ("img", "labels"), ("pixel_values", "label")])
def test_dicts_of_usual_keys_are_read_by_name(keys):
    batch = UserDict({"writer": [0] * 5, keys[1]: LABELS, keys[0]: IMAGES})
    ((images, labels),) = as_batches([batch])
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)


def test_dicts_of_other_keys_are_read_by_the_keys_given():
    batch = {"image": 0 * IMAGES, "x": IMAGES, "label": 0 * LABELS, "fine_label": LABELS}
    ((images, labels),) = as_batches([batch], image_key="x", label_key="fine_label")
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)


def test_a_data_set_of_flwr_datasets_form_is_read_through_a_data_loader():
    rows = {"img": IMAGES.tolist(), "label": LABELS.tolist()}
    found = as_batches(DataLoader(Dataset.from_dict(rows).with_format("torch"), 2))
    assert torch.equal(found.targets, LABELS)
    assert torch.equal(torch.cat([images for images, _ in found]), IMAGES)


def test_keys_that_are_not_clear_are_refused_with_those_there():
    two = {"img": IMAGES, "fine_label": LABELS, "coarse_label": LABELS}
    assert refusal(two) == (
        "a batch has the keys img, fine_label, coarse_label: label_key is not clear; name it in "
        "as_batches"
    )
    assert "image_key is not clear" in refusal({"img": IMAGES, "image": IMAGES, "label": LABELS})
    assert "label_key 'y' is not among them" in refusal(two, label_key="y")


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        ((IMAGES, LABELS, IMAGES), "a batch is a tuple of 3"),
        ([IMAGES, LABELS, IMAGES], "a batch is a list of 3"),
        ((IMAGES,), "a batch is a tuple of 1"),
        (torch.zeros(2, 5), "a batch is a Tensor"),
        ("ab", "a batch is a str"),
    ],
)
def test_what_is_no_pair_is_refused(batch, what):
    expected = ": expected (images, labels), or a dict of both"
    assert refusal(batch) == what + expected
    with pytest.raises(ValueError, match="expected"):
        next(endless([batch], generator()))


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (torch.zeros(5, 2, dtype=torch.long), "labels of shape (5, 2) beside 5 images"),
        (torch.zeros(4, dtype=torch.long), "labels of shape (4,) beside 5 images"),
        (torch.tensor(1), "labels of shape () beside 5 images"),
        (LABELS.float(), "labels such as 3.0"),
        (torch.tensor([torch.nan] * 5), "labels such as nan"),
        (torch.tensor([1, 0, -1, 2, 2]), "labels such as -1"),
        ([None] * 5, "labels of type list"),
        (["a"] * 5, "labels of type list"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(labels, what):
    assert refusal((IMAGES, labels)).startswith(what)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_are_read(kind):
    ((_, labels),) = one_batch(labels=LABELS.to(kind))
    assert labels.dtype == torch.int64
    assert torch.equal(labels, LABELS)


def test_arrays_are_read_as_tensors():
    ((images, labels),) = one_batch(IMAGES.numpy(), LABELS.numpy())
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)


def test_images_that_are_no_finite_tensor_are_refused():
    broken = IMAGES.clone()
    broken[3, 1] = torch.nan
    assert refusal((broken, LABELS)) == "images: hold NaN or infinity"
    assert refusal(([object()] * 5, LABELS)).startswith("images of type list")


def test_what_can_be_read_only_once_is_refused():
    with pytest.raises(ValueError, match=r"a loader of type generator: can be read once only"):
        as_batches(batch for batch in [(IMAGES, LABELS)])


def test_an_empty_loader_is_refused_wherever_it_is_read():
    for look in (lambda b: b.targets, list, lambda b: b.taken(torch.tensor([0]))):
        with pytest.raises(ValueError, match="the loader yields no batch"):
            look(as_batches([]))
