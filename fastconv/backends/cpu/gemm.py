"""Matrix product as a 1×1 convolution: b is one sample with a channel for each row, a the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.convolution import correlate_into
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
    geometry = ConvGeometry(k, m, 1, (n,), (1,), (1,), (1,), ((0, 0),))
    steps = (1, m) if transposed else (k, 1)
    correlate_into(forward_plan(geometry, b.itemsize), b[None], weights, steps, None, c[None], relu=False)
    return c
