"""Padding and its adjoint by whole-array copies: the work is small beside the convolution that follows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad(x: Array, padding: Sequence[tuple[int, int]], mode: str, value: float = 0.0) -> Array:
    """See contract.Backend.pad."""
    widths = [(0, 0)] * (x.ndim - len(padding)) + [tuple(sides) for sides in padding]
    if mode == "zeros":
        return np.pad(x, widths, constant_values=value)
    return np.pad(x, widths, mode=_NUMPY_MODES[mode])  # type: ignore[call-overload, no-any-return]


def pad_grad(gy: Array, padding: Sequence[tuple[int, int]], mode: str, spatial: Sequence[int]) -> Array:
    """See contract.Backend.pad_grad."""
    first = gy.ndim - len(padding)
    gx = gy
    for axis, (sides, size) in enumerate(zip(padding, spatial, strict=True), start=first):
        gx = _axis_grad(gx, axis, sides, mode, size)
    return np.ascontiguousarray(gx)


def _axis_grad(gy: Array, axis: int, sides: tuple[int, int], mode: str, size: int) -> Array:
    """The adjoint of padding one axis: the middle, plus every copy of its positions in the order of the outputs."""
    before = sides[0]
    middle = gy[(slice(None),) * axis + (slice(before, before + size),)]
    if mode == "zeros" or sides == (0, 0):
        return middle
    moved = np.moveaxis(middle, axis, 0).copy()
    source = np.moveaxis(gy, axis, 0)
    for output, position in _copies(sides, mode, size):
        moved[position] += source[output]
    return np.moveaxis(moved, 0, axis)


@lru_cache(maxsize=256)
def _copies(sides: tuple[int, int], mode: str, size: int) -> list[tuple[int, int]]:
    """(output, input) positions of an axis for the outputs outside the middle."""
    before = sides[0]
    table = np.pad(np.arange(size), sides, mode=_NUMPY_MODES[mode])  # type: ignore[call-overload]
    return [(o, int(i)) for o, i in enumerate(table) if not before <= o < before + size]
