"""Padding and its adjoint: kernels/padding.cu."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, blocks_for
from fastconv.backends.cuda.module import TYPES, Template, computed, size

Array = Any

_CHOICES = list(product(TYPES.values(), ("ZEROS", "REFLECT", "REPLICATE", "CIRCULAR")))
_PAD = Template("padding.cu", "pad", _CHOICES)
_PAD_GRAD = Template("padding.cu", "pad_grad", _CHOICES)

_PADDING = np.dtype([(name, np.int32, 3) for name in ("in", "out", "before")])
"""`Padding` of the kernels."""


@primitive
def pad(x: Array, padding: Sequence[tuple[int, int]], mode: str, value: float = 0.0) -> Array:
    """See contract.Backend.pad."""
    given = x.shape[x.ndim - len(padding) :]
    padded = tuple(length + sum(sides) for length, sides in zip(given, padding))
    y = platform.current().xp.empty((*x.shape[: x.ndim - len(padding)], *padded), x.dtype)
    kernel = _PAD(TYPES[x.dtype.name], mode.upper())
    numbers = _as_struct(given, padded, padding)
    kernel(blocks_for(y.size), (THREADS,), x, y, size(y), numbers, computed(x.dtype, value))
    return y


@primitive
def pad_grad(gy: Array, padding: Sequence[tuple[int, int]], mode: str, spatial: Sequence[int]) -> Array:
    """See contract.Backend.pad_grad."""
    outer, padded = gy.shape[: gy.ndim - len(padding)], gy.shape[gy.ndim - len(padding) :]
    gx = platform.current().xp.empty((*outer, *spatial), gy.dtype)
    kernel = _PAD_GRAD(TYPES[gy.dtype.name], mode.upper())
    kernel(blocks_for(gx.size), (THREADS,), gy, gx, size(gx), _as_struct(spatial, padded, padding))
    return gx


def _as_struct(given: Sequence[int], padded: Sequence[int], padding: Sequence[tuple[int, int]]) -> Any:
    numbers = np.zeros((), _PADDING)
    missing = 3 - len(padding)
    numbers["in"] = (1,) * missing + tuple(given)
    numbers["out"] = (1,) * missing + tuple(padded)
    numbers["before"] = (0,) * missing + tuple(before for before, _ in padding)
    return numbers
