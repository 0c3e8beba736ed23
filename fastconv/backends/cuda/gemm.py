"""Matrix product: kernels/matmul.cu."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, tiles_grid
from fastconv.backends.cuda.module import TYPES, Template

Array = Any

_MATMUL = Template("matmul.cu", "matmul", product(TYPES.values()))
_TILE = 64
_FACTOR = np.dtype([("row", "i8"), ("column", "i8")])
"""`Factor` of the kernels."""


@primitive
def matmul(a: Array, b: Array) -> Array:
    """See contract.Backend.matmul."""
    xp = platform.current().xp
    (m, k), n = a.shape, b.shape[1]
    a, b = (x if x.flags.c_contiguous or x.flags.f_contiguous else xp.ascontiguousarray(x) for x in (a, b))
    c = xp.empty((m, n), a.dtype)
    kernel = _MATMUL(TYPES[a.dtype.name])
    kernel(tiles_grid(m, n, _TILE), (THREADS,), _memory(a), _memory(b), c, m, n, k, _strides(a), _strides(b))
    return c


@primitive
def linear(x: Array, w: Array, b: Array | None) -> Array:
    """See contract.Backend.linear."""
    y = matmul(x, w.T)
    if b is not None:
        y += b
    return y


def _memory(factor: Array) -> Array:
    return factor if factor.flags.c_contiguous else factor.T


def _strides(factor: Array) -> Any:
    return np.array(tuple(stride // factor.dtype.itemsize for stride in factor.strides), _FACTOR)
