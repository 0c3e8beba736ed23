"""Images of digits as users have them: any size, colour, polarity and transparency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv.io.images import read_digit


def seven(height: int, width: int) -> np.ndarray:
    """A seven in bright ink on black, anywhere in a picture of that size: a bar, and a slanted stroke below its end."""
    picture = np.zeros((height, width))
    top, left, size = height // 4, width // 3, min(height, width) // 2
    thick = max(size // 8, 1)
    picture[top : top + thick, left : left + size * 2 // 3] = 1
    for row in range(size):
        start = left + size * 2 // 3 - thick - row * size // 3 // size
        picture[top + row, start : start + thick] = 1
    return picture


@pytest.fixture
def image() -> Any:
    return pytest.importorskip("PIL.Image", reason='pip install "fastconv[examples]"')


def saved(image: Any, path: Path, kind: str) -> Path:
    """The seven of 120×90 in one of the forms in which users have it."""
    ink = seven(120, 90)
    grey, empty = (ink * 255).astype(np.uint8), np.zeros_like(ink, np.uint8)
    paper = 255 - grey
    pictures = {
        "white on black": lambda: image.fromarray(grey),
        "black on white": lambda: image.fromarray(paper),
        "weak": lambda: image.fromarray((120 + 0.2 * grey).astype(np.uint8)),
        "RGB": lambda: image.fromarray(np.stack([255 - grey // 2, paper, paper], axis=-1)),
        "black on transparent": lambda: image.fromarray(np.stack([empty, empty, empty, grey], axis=-1)),
        "white on transparent": lambda: image.fromarray(np.stack([~empty, ~empty, ~empty, grey], axis=-1)),
        "palette": lambda: image.fromarray(np.stack([paper, paper, paper], axis=-1)).convert("P"),
        "one bit": lambda: image.fromarray(grey > 0),
        "16 bits": lambda: image.fromarray((ink * 40000).astype(np.uint16)),
        "large": lambda: image.fromarray(np.kron(paper, np.ones((5, 5), np.uint8))),
    }
    pictures[kind]().save(path)
    return path


KINDS = (
    "white on black",
    "black on white",
    "weak",
    "RGB",
    "black on transparent",
    "white on transparent",
    "palette",
    "one bit",
    "16 bits",
    "large",
)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_one_digit_come_out_alike(image: Any, tmp_path: Path, kind: str) -> None:
    expected = read_digit(saved(image, tmp_path / "expected.png", "white on black"), 28, 20, "mass")
    result = read_digit(saved(image, tmp_path / "result.png", kind), 28, 20, "mass")
    assert result.shape == (1, 1, 28, 28) and result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=0.05)
    rows = np.flatnonzero(result[0, 0].max(axis=1) > 0.1)
    assert np.ptp(rows) + 1 == 20 and abs((result[0, 0].sum(axis=1) @ np.arange(28)) / result.sum() - 13.5) < 1


def test_image_of_the_right_size_is_taken_as_it_is(image: Any, tmp_path: Path) -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[3:9, 20:25] = 255
    image.fromarray(255 - pixels).save(tmp_path / "corner.png")
    assert (read_digit(tmp_path / "corner.png", 28, 20)[0, 0] == pixels / 255).all()
