"""Joining, and the adjoint of indexing: kernels/indexing.cu."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import current
from fastconv.backends.cuda.launch import THREADS, blocks_for
from fastconv.backends.cuda.module import TYPES, Template, size

Array = Any

_SCATTER_ADD = Template("indexing.cu", "scatter_add", product(TYPES.values()))


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    """See contract.Backend.concatenate."""
    # Not by CuPy's concatenate: of more than eight arrays it copies a table of addresses from the host
    # (_concatenate_single_kernel in cupy/_core/_routines_manipulation.pyx), which a CUDA graph cannot repeat.
    with current(arrays[0]):
        xp = platform.current().xp
        axis %= arrays[0].ndim
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        y, start = xp.empty(tuple(shape), xp.result_type(*arrays)), 0
        for array in arrays:
            stop = start + array.shape[axis]
            y[(slice(None),) * axis + (slice(start, stop),)] = array
            start = stop
        return y


def scatter_add(shape: tuple[int, ...], key: Any, gy: Array) -> Array:
    """See contract.Backend.scatter_add."""
    with current(gy):
        xp = platform.current().xp
        gx = xp.zeros(shape, gy.dtype)
        positions = xp.ascontiguousarray(xp.arange(prod(shape), dtype=np.int64).reshape(shape)[key]).reshape(-1)
        # The sort must keep the order of equal positions: CuPy's is stable.
        order = xp.argsort(positions, kind="stable")
        _SCATTER_ADD(TYPES[gy.dtype.name])(blocks_for(gy.size), (THREADS,), gy, positions, order, gx, size(gy))
        return gx
