"""The kernels of the cache; how a device uses them stands in test_device_logits.py."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_device import POOL, STD, Counted, image_loader, image_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower.data.batches import as_batches, endless
from dccl_flower.data.loader import ImageLoader
from dccl_flower.learning.control_logits import (
    PASS_BATCH,
    control_logits,
    with_logits,
)
from dccl_flower.learning.controlled import LocalRecipe, train_controlled

ROWS = [7, 300, 2, 9, 4, 0, 5, 118, 31]
RECIPE = LocalRecipe(steps=7, lr=0.1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_images_without_augmentation_are_the_same_in_every_epoch():
    assert image_loader(ROWS).is_fixed
    assert not image_loader(ROWS, augment="flip_crop").is_fixed


def test_other_loaders_do_not_tell_their_images_by_position():
    dataset = TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    for loader in (DataLoader(dataset, 2, shuffle=True), list(DataLoader(dataset, 2))):
        assert not as_batches(loader).is_fixed


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_logits_stand_in_the_order_of_the_rows_whatever_the_batches(batch_size):
    control = image_model(1).train()
    logits = control_logits(control, image_loader(ROWS, batch_size))
    assert control.training
    (batch,) = image_loader(ROWS, len(ROWS))
    torch.testing.assert_close(logits, control.eval()(batch[0]).detach(), rtol=0, atol=1e-6)
    assert not logits.is_inference()
    assert not logits.requires_grad


def test_the_control_is_asked_in_passes_of_its_own_size_and_draws_nothing():
    control = Counted(image_model(1))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    control_logits(control, image_loader(range(2 * PASS_BATCH + 1), 4))
    assert control.batches == [PASS_BATCH, PASS_BATCH, 1]
    assert torch.equal(before, torch.get_rng_state())


def test_batches_are_those_of_the_plain_loader_with_the_logits_of_their_images():
    # Five epochs, each shuffled anew; the last batch of an epoch has one image and is left out.
    loader, control = image_loader(ROWS, 4), image_model(1).eval()
    logits = control_logits(control, loader)
    count = 5 * 2
    plain = islice(endless(loader, generator()), count)
    for (images, labels), known in zip(
        plain, islice(with_logits(loader, logits, generator()), count), strict=True
    ):
        assert torch.equal(known.images, images)
        assert torch.equal(known.labels, labels)
        torch.testing.assert_close(known.logits, control(images).detach(), rtol=0, atol=1e-6)


def test_targets_that_are_no_positions_are_kept_apart_from_them():
    loader = image_loader(ROWS, 4).with_targets(torch.arange(50.0, 50.0 + len(ROWS)))
    logits = torch.arange(len(ROWS)).unsqueeze(1).expand(-1, 3)
    for batch in islice(with_logits(loader, logits, generator()), 6):
        assert torch.equal(batch.labels, 50.0 + batch.logits[:, 0])


def test_the_generator_is_left_where_plain_batches_leave_it():
    loader, ends = image_loader(ROWS, 4), []
    for batches in (endless, lambda data, draw: with_logits(data, torch.zeros(9, 3), draw)):
        draw = generator(5)
        list(islice(batches(loader, draw), 5))
        ends.append(draw.get_state())
    assert torch.equal(*ends)


def test_training_comes_to_the_same_with_the_control_asked_never_instead_of_each_step():
    finals, controls = [], []
    for is_known in (False, True):
        loader, control, co = image_loader(ROWS, 4), Counted(image_model(1)), image_model(2)
        logits = control_logits(control.model, loader)
        batches = (
            with_logits(loader, logits, generator()) if is_known else endless(loader, generator())
        )
        scores = train_controlled(co, control, batches, nn.functional.cross_entropy, RECIPE)
        finals.append((co.state_dict(), scores))
        controls.append(control.batches)
    assert controls == [[4] * 7, []]
    (plain, plain_scores), (known, known_scores) = finals
    assert known_scores == pytest.approx(plain_scores, abs=1e-6)
    for name, tensor in plain.items():
        torch.testing.assert_close(known[name], tensor, rtol=0, atol=1e-6)


def test_a_digest_tells_images_their_order_and_their_scale_and_nothing_else():
    digest = image_loader(ROWS).content_digest()
    assert digest == image_loader(ROWS, batch_size=2).content_digest()
    assert digest == image_loader(ROWS).with_targets(torch.zeros(9)).content_digest()
    # The same images at other places of another pool.
    moved = ImageLoader(POOL[ROWS], np.arange(9), torch.zeros(9), 4, *normalisation())
    assert digest == moved.content_digest()
    brighter = POOL.copy()
    brighter[31, 3, 3] ^= 1
    others = [
        image_loader(ROWS[::-1]),
        image_loader(ROWS[:-1]),
        image_loader(ROWS, images=brighter),
        ImageLoader(POOL, np.array(ROWS), torch.zeros(9), 4, normalisation()[0], 2 * STD),
        ImageLoader(POOL, np.array(ROWS), torch.zeros(9), 4, normalisation()[0] + 1, STD),
    ]
    assert len({digest, *(other.content_digest() for other in others)}) == 6


def normalisation():
    loader = image_loader(ROWS)
    return loader.mean, loader.std


@settings(deadline=None, max_examples=60)
@given(*[st.lists(st.integers(0, 20), min_size=1, max_size=4)] * 2)
def test_digests_are_equal_where_the_images_are(left, right):
    digests = [image_loader(rows).content_digest() for rows in (left, right)]
    assert (digests[0] == digests[1]) == (left == right)
