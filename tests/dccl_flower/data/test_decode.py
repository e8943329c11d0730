"""Pixels of single images; whole columns of them are tried by test_images.py."""

import io

import numpy as np
import PIL.Image

from dccl_flower.data.decode import pixels_of, resized


def test_the_middle_square_is_kept():
    wide = np.zeros((2, 6, 1), np.uint8)
    wide[:, 2:4] = 255
    assert np.array_equal(resized(wide, 2), np.full((2, 2, 1), 255, np.uint8))


def test_channels_stay_apart():
    two_colours = np.stack([np.full((4, 4), value, np.uint8) for value in (10, 20, 30)], axis=-1)
    assert np.array_equal(resized(two_colours, 8), np.tile(np.uint8([10, 20, 30]), (8, 8, 1)))


def test_an_encoded_image_is_made_rgb_and_square_in_one():
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((3, 5), 77, np.uint8)).save(file, "PNG")
    pixels = pixels_of({"bytes": file.getvalue(), "path": None}, rgb=True, size=6)
    assert np.array_equal(pixels, np.full((6, 6, 3), 77, np.uint8))
