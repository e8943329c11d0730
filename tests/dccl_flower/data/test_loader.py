from itertools import islice

import numpy as np
import pytest
import torch
from torch.nn.functional import pad
from torch.utils.data import DataLoader, TensorDataset

from dccl_flower.data.batches import endless
from dccl_flower.data.loader import ImageLoader, flip_crop, normalise

ZERO, ONE = np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32)
# Six 2x2 images; image n has all pixels at 10 n.
PIXELS = np.arange(0, 60, 10, dtype=np.uint8).repeat(4).reshape(6, 2, 2, 1)


def make_loader(rows=range(6), batch_size=2, **options):
    rows = np.array(rows, dtype=np.int64)
    return ImageLoader(PIXELS, rows, torch.from_numpy(rows), batch_size, ZERO, ONE, **options)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def image_numbers(batches):
    """The numbers of the images by their pixels, and the targets that came with them."""
    pairs = list(batches)
    pixels = torch.cat([images for images, _ in pairs])[:, 0, 0, 0]
    numbers = (pixels * 25.5).round().long().tolist()
    return numbers, torch.cat([targets for _, targets in pairs]).tolist()


def test_normalise_shifts_and_scales_each_channel():
    pixels = np.array([[[[0, 255], [255, 51]]]], dtype=np.uint8)
    mean, std = np.array([0.5, 0.2], dtype=np.float32), np.array([0.25, 0.1], dtype=np.float32)
    found = normalise(pixels, mean, std)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor([[[[-2.0, 2.0]], [[8.0, 0.0]]]]), atol=1e-6)


def test_normalise_puts_channels_first():
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    found = normalise(pixels, np.zeros(5, dtype=np.float32), np.ones(5, dtype=np.float32))
    assert found.shape == (2, 5, 3, 4)
    assert (found[1, 4, 2, 3] * 255).round() == pixels[1, 2, 3, 4]


def test_normalise_leaves_the_pixels_as_they_are():
    before = PIXELS.copy()
    normalise(PIXELS, ONE, ONE)
    assert np.array_equal(PIXELS, before)


def test_plain_iteration_is_in_order_and_whole():
    loader = make_loader(rows=[4, 0, 5, 2, 1], batch_size=2)
    assert [len(targets) for _, targets in loader] == [2, 2, 1]
    assert image_numbers(loader) == ([4, 0, 5, 2, 1], [4, 0, 5, 2, 1])


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 6), (2, 3), (4, 2), (6, 1), (9, 1)])
def test_length_counts_the_batches_of_plain_iteration(batch_size, batches):
    loader = make_loader(batch_size=batch_size)
    assert (len(loader), len(list(loader)), loader.num_samples) == (batches, batches, 6)


def test_an_epoch_gives_every_sample_once_with_its_target():
    numbers, targets = image_numbers(make_loader().epoch(generator()))
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5]
    assert numbers == targets
    assert numbers != [0, 1, 2, 3, 4, 5]


def test_epochs_differ_and_follow_the_generator():
    loader, draw = make_loader(), generator(3)
    first, second = image_numbers(loader.epoch(draw)), image_numbers(loader.epoch(draw))
    assert first != second
    assert image_numbers(loader.epoch(generator(3))) == first


def test_an_epoch_leaves_out_a_last_batch_of_one():
    loader = make_loader(rows=range(5), batch_size=2)
    assert [len(targets) for _, targets in loader.epoch(generator())] == [2, 2]


def test_an_epoch_over_one_sample_gives_it():
    assert image_numbers(make_loader(rows=[3]).epoch(generator())) == ([3], [3])


def test_with_targets_keeps_the_samples():
    loader = make_loader(rows=[4, 0, 5])
    logits = torch.tensor([[4.0, 40.0], [0.0, 0.0], [5.0, 50.0]])
    taught = loader.with_targets(logits)
    assert torch.equal(torch.cat([targets for _, targets in taught]), logits)
    assert torch.equal(torch.cat([images for images, _ in taught])[:, 0, 0, 0] * 255, logits[:, 1])
    assert image_numbers(loader)[1] == [4, 0, 5]


def test_with_targets_stay_with_their_samples_when_shuffled():
    loader = make_loader(rows=[4, 0, 5], batch_size=3)
    taught = loader.with_targets(torch.tensor([4.5, 0.5, 5.5]))
    numbers, targets = image_numbers(taught.epoch(generator()))
    assert sorted(targets) == [0.5, 4.5, 5.5]
    assert [number + 0.5 for number in numbers] == targets


def test_a_memory_map_is_read_without_a_warning(tmp_path, recwarn):
    np.save(tmp_path / "pixels.npy", PIXELS)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    loader = ImageLoader(mapped, np.array([2, 1]), torch.tensor([2, 1]), 2, ZERO, ONE)
    assert image_numbers(loader) == ([2, 1], [2, 1])
    assert list(recwarn) == []


def numbered_images(count):
    """Copies of one 6x5 image of two channels without two equal pixels and without a zero."""
    one = torch.arange(1.0, 31.0).view(1, 1, 6, 5)
    return torch.cat([one, 100 * one], dim=1).repeat(count, 1, 1, 1)


def test_flip_crop_gives_every_window_of_the_padded_image_and_of_its_mirror_image():
    image = numbered_images(1)
    windows = set()
    for version in (image, image.flip(3)):
        padded = pad(version, [4, 4, 4, 4])
        for top in range(9):
            for left in range(9):
                window = padded[0, :, top : top + 6, left : left + 5]
                windows.add(tuple(window.flatten().tolist()))
    found = {
        tuple(crop.flatten().tolist()) for crop in flip_crop(numbered_images(4000), generator())
    }
    assert len(windows) == 2 * 9 * 9
    assert found == windows


def test_flip_crop_keeps_the_shape_and_its_input():
    images = numbered_images(3)
    assert flip_crop(images, generator()).shape == (3, 2, 6, 5)
    assert torch.equal(images, numbered_images(3))


def test_flip_crop_follows_the_generator():
    images = numbered_images(8)
    first, again, other = (flip_crop(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_an_epoch_augments():
    plain, augmented = make_loader(), make_loader(augment="flip_crop")
    assert image_numbers(augmented) == image_numbers(plain)
    whole = torch.cat([images for images, _ in plain.epoch(generator())])
    cropped = torch.cat([images for images, _ in augmented.epoch(generator())])
    assert (cropped == 0).sum() > (whole == 0).sum()


def test_endless_shuffles_every_epoch_anew():
    numbers, _ = image_numbers(islice(endless(make_loader(), generator()), 9))
    epochs = [numbers[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4, 5] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_endless_goes_round_a_torch_data_loader():
    dataset = TensorDataset(torch.arange(3.0), torch.arange(3))
    batches = islice(endless(DataLoader(dataset, batch_size=2), generator()), 5)
    assert [targets.tolist() for _, targets in batches] == [[0, 1], [2], [0, 1], [2], [0, 1]]


@pytest.mark.parametrize("empty", [[], DataLoader(TensorDataset(torch.empty(0)), batch_size=2)])
def test_endless_refuses_an_empty_loader(empty):
    with pytest.raises(ValueError, match="yields no batch"):
        next(endless(empty, generator()))


def test_an_image_loader_without_samples_yields_no_batch():
    loader = make_loader(rows=[])
    assert len(list(loader)) == len(loader) == 0
    with pytest.raises(ValueError, match="yields no batch"):
        next(endless(loader, generator()))
