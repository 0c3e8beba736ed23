"""Softmax and cross-entropy, with their gradients: kernels/softmax.cu."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, blocks_for
from fastconv.backends.cuda.module import TYPES, Template

Array = Any

_LANES = (1, 32)
_SOFTMAX = Template("softmax.cu", "softmax", product(TYPES.values(), _LANES, (False, True)))
_SOFTMAX_GRAD = Template("softmax.cu", "softmax_grad", product(TYPES.values(), _LANES, (False, True)))
_CROSS_ENTROPY = Template("softmax.cu", "cross_entropy", product(TYPES.values(), _LANES))
_CROSS_ENTROPY_GRAD = Template("softmax.cu", "cross_entropy_grad", product(TYPES.values(), _LANES))

_SMOOTHING = np.dtype([("own", "f8"), ("even", "f8")])
"""`Smoothing` of the kernels."""


@primitive
def softmax(x: Array, axis: int, log: bool) -> Array:
    """See contract.Backend.softmax."""
    y = platform.current().xp.empty_like(x)
    rows, length, inner, lanes = _rows(x.shape, axis)
    _SOFTMAX(TYPES[x.dtype.name], lanes, bool(log))(_grid(rows, lanes), (THREADS,), x, y, rows, length, inner)
    return y


@primitive
def softmax_backward(gy: Array, y: Array, axis: int, log: bool) -> Array:
    """See contract.Backend.softmax_backward."""
    gx = platform.current().xp.empty_like(gy)
    rows, length, inner, lanes = _rows(gy.shape, axis)
    kernel = _SOFTMAX_GRAD(TYPES[gy.dtype.name], lanes, bool(log))
    kernel(_grid(rows, lanes), (THREADS,), gy, y, gx, rows, length, inner)
    return gx


@primitive
def cross_entropy(x: Array, classes: Array, weight: Array | None, smoothing: float) -> tuple[Array, Array]:
    """See contract.Backend.cross_entropy; its second result: largest element and logarithm of the sum of each row."""
    xp = platform.current().xp
    rows, length, inner, lanes = _rows(x.shape, 1)
    losses = xp.empty(classes.shape, x.dtype)
    normalisers = xp.empty((2, *classes.shape), np.float64 if x.dtype == np.float64 else np.float32)
    kernel = _CROSS_ENTROPY(TYPES[x.dtype.name], lanes)
    arrays = x, classes, weight, losses, normalisers
    kernel(_grid(rows, lanes), (THREADS,), *arrays, rows, length, inner, _smoothing(smoothing, length))
    return losses, normalisers


@primitive
def cross_entropy_backward(
    g: Array, x: Array, normalisers: Array, classes: Array, weight: Array | None, smoothing: float
) -> Array:
    """See contract.Backend.cross_entropy_backward."""
    gx = platform.current().xp.empty_like(x)
    rows, length, inner, lanes = _rows(x.shape, 1)
    kernel = _CROSS_ENTROPY_GRAD(TYPES[x.dtype.name], lanes)
    arrays = g, x, normalisers, classes, weight, gx
    kernel(_grid(rows, lanes), (THREADS,), *arrays, rows, length, inner, _smoothing(smoothing, length))
    return gx


def _rows(shape: tuple[int, ...], axis: int) -> tuple[Any, int, Any, int]:
    """Number of rows, their length, the distance of their elements, and how many threads own a row."""
    axis %= len(shape)
    length, inner = shape[axis], prod(shape[axis + 1 :])
    rows = prod(shape[:axis]) * inner if length else 0
    return np.int64(rows), length, np.int64(inner), 32 if inner == 1 else 1


def _grid(rows: Any, lanes: int) -> tuple[int]:
    return blocks_for(int(rows) * lanes)


def _smoothing(smoothing: float, length: int) -> Any:
    return np.array((1.0 - smoothing, smoothing / max(length, 1)), _SMOOTHING)
