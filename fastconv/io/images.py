"""Pictures of handwritten digits, from a camera, a scanner or a paint program, as a training set has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = Any

_INK = 0.3
"""Brightness, of the brightest ink, from which a pixel belongs to the digit; below are shadows and noise."""


def read_digit(path: str | Path, size: int, box: int, centre: str = "box") -> Array:
    """The digit in an image file as bright ink on black: (1, 1, size, size) float32 in [0, 1].

    Takes any format, size and colour that Pillow reads, transparency, and dark ink on bright ground as well as bright
    ink on dark. The part with ink is scaled so that its longer side is `box` pixels and put into the middle: its
    bounding box (`centre="box"`) or its centre of mass (`centre="mass"`, as in MNIST). An image that has the right size
    already is taken as it is. Raises FileNotFoundError, ValueError for a file that is no image or shows nothing,
    ImportError without Pillow.
    """
    ink = _ink(path)
    if ink.shape != (size, size):
        ink = _centred(_scaled(_cut_out(ink), box), size, centre)
    return ink[None, None].astype(np.float32)


def _ink(path: str | Path) -> Array:
    """The picture (H, W) with the ground at 0 and the strongest ink at 1."""
    grey = _opened(path)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ground = float(np.median(border))
    ink = np.clip((grey - ground) if _is_bright(grey, ground) else (ground - grey), 0, None)
    if ink.max() < 0.05:
        raise ValueError(f"read_digit: {path} shows nothing: all its pixels are nearly of one brightness")
    return ink / ink.max()


def _is_bright(grey: Array, ground: float) -> bool:
    """Whether the ink is brighter than the ground: what differs most from it decides."""
    return float(grey.max() - ground) > float(ground - grey.min())


def _opened(path: str | Path) -> Array:
    """Brightness (H, W) in [0, 1]; transparent parts become the opposite of what is drawn on them."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError('images need Pillow, which is not installed: pip install "fastconv[examples]"') from error
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
                return np.asarray(image, dtype=np.float64) / 65535
            pixels = np.asarray(image.convert("RGBA"), dtype=np.float64) / 255
    except UnidentifiedImageError as error:
        raise ValueError(f"read_digit: {path} is no image that Pillow can read") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"read_digit: there is no file {path}") from error
        raise ValueError(f"read_digit: {path} is damaged or no image ({error})") from error
    grey, opacity = pixels[..., :3] @ (0.299, 0.587, 0.114), pixels[..., 3]
    drawn = float((grey * opacity).sum() / max(opacity.sum(), 1e-9))
    return grey * opacity + (0.0 if drawn > 0.5 else 1.0) * (1 - opacity)


def _cut_out(ink: Array) -> Array:
    rows, columns = np.flatnonzero((ink > _INK).any(axis=1)), np.flatnonzero((ink > _INK).any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _scaled(ink: Array, box: int) -> Array:
    """The longer side becomes `box` pixels; Pillow averages over the pixels that merge."""
    from PIL import Image

    height, width = ink.shape
    scale = box / max(height, width)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(ink.astype(np.float32))
    return np.clip(np.asarray(image.resize(target, Image.Resampling.BILINEAR)), 0, 1)


def _centred(ink: Array, size: int, centre: str) -> Array:
    result = np.zeros((size, size))
    corner = []
    for axis, extent in enumerate(ink.shape):
        middle = (extent - 1) / 2
        if centre == "mass":
            middle = float((ink.sum(axis=1 - axis) * np.arange(extent)).sum() / ink.sum())
        corner.append(int(np.clip(round((size - 1) / 2 - middle), 0, size - extent)))
    result[corner[0] : corner[0] + ink.shape[0], corner[1] : corner[1] + ink.shape[1]] = ink
    return result
