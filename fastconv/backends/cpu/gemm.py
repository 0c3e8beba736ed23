"""Matrix product as a 1×1 convolution: b is one sample with a channel for each row, a the weights."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.convolution import Algorithm, algorithm
from fastconv.backends.cpu.plan import forward_plan
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]


def matmul(a: Array, b: Array) -> Array:
    """See contract.Backend.matmul."""
    if not b.flags.c_contiguous:
        if b.T.flags.c_contiguous:  # the weights of a linear layer: cheaper to turn the other factor and the result
            return np.ascontiguousarray(_product(b.T, np.ascontiguousarray(a.T)).T)
        b = np.ascontiguousarray(b)
    return _product(a, b)


def _product(a: Array, b: Array) -> Array:
    (m, k), n = a.shape, b.shape[1]
    c = np.zeros((m, n), b.dtype) if k == 0 else np.empty((m, n), b.dtype)
    if not c.size or k == 0:
        return c
    transposed = not a.flags.c_contiguous
    weights = np.ascontiguousarray(a.T if transposed else a)
    _algorithm(m, k, n, b.itemsize, transposed).run(b[None], weights, None, c[None], False)
    return c


@lru_cache(maxsize=4096)
def _algorithm(m: int, k: int, n: int, itemsize: int, transposed: bool) -> Algorithm:
    geometry = ConvGeometry(k, m, 1, (n,), (1,), (1,), (1,), ((0, 0),))
    return algorithm(forward_plan(geometry, itemsize), (1, m) if transposed else (k, 1), "highest")
