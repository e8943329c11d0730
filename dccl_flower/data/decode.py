"""What a column of images holds for a row, as pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import PIL.Image


def pixels_of(value: Any, rgb: bool, size: int | None = None) -> np.ndarray:
    """Return the pixels (H, W, C) uint8 of what a column of images holds for a row.

    With ``rgb`` in three channels, and with a ``size`` square. Raises ValueError that says what
    there is in place of an image.
    """
    image = _from_array(value) if isinstance(value, list) else _from_file(value)
    mode = image.mode
    if mode.startswith(("I", "F")):  # which Pillow would clip to white
        raise ValueError(f"has mode {mode}, 16 or 32 bits a channel; scale it to 8 bits")
    if rgb:
        try:
            image = image.convert("RGB")
        except ValueError as error:
            raise ValueError(f"has mode {mode}: {first_line(error)}") from error
    elif mode not in ("L", "RGB", "RGBA"):
        allowed = "allowed are L, RGB and RGBA, and others with data.rgb=true"
        raise ValueError(f"has mode {mode}; {allowed}")
    pixels = np.atleast_3d(np.asarray(image))
    return pixels if size is None else resized(pixels, size)


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the middle square of an image (H, W, C) uint8, with ``size`` pixels a side."""
    import PIL.Image
    from PIL.ImageOps import fit

    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.atleast_3d(np.asarray(fit(image, (size, size), PIL.Image.Resampling.BICUBIC)))


def _from_file(value: dict[str, Any] | None) -> PIL.Image.Image:
    from datasets import Image

    if value is None:
        raise ValueError("holds no image")
    try:
        return Image().decode_example(value)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError(f"holds a damaged image ({first_line(error)})") from error


def _from_array(values: list[Any]) -> PIL.Image.Image:
    import PIL.Image

    try:
        pixels = np.asarray(values)
        is_bytes = pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 255
        if not is_bytes or pixels.ndim not in (2, 3):
            raise ValueError
        pixels = pixels.astype(np.uint8)
        return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    except (TypeError, ValueError) as error:
        expected = "expected integers from 0 to 255, (H, W) or (H, W, C)"
        raise ValueError(f"holds an array that is no image; {expected}") from error


def first_line(error: Exception) -> str:
    """Return what an error says first; its name where it says nothing."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
