"""Pooling and its gradients: kernels/pooling.cu."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, blocks_for, lanes_for
from fastconv.backends.cuda.module import TYPES, Template, size
from fastconv.geometry import PoolGeometry

Array = Any

_LANES = (1, 32)
_MAX_POOL = Template("pooling.cu", "max_pool", product(TYPES.values(), _LANES))
_MAX_POOL_GRAD = Template("pooling.cu", "max_pool_grad", product(TYPES.values()))
_AVG_POOL = Template("pooling.cu", "avg_pool", product(TYPES.values(), _LANES))
_AVG_POOL_GRAD = Template("pooling.cu", "avg_pool_grad", product(TYPES.values()))

_PER_AXIS = ("in", "out", "kernel", "stride", "dilation", "before", "after")
_POOL = np.dtype([(name, np.int32, 3) for name in _PER_AXIS] + [(n, np.int32) for n in ("adaptive", "pad", "divisor")])
"""`Pool` of the kernels."""


@primitive
def max_pool_forward(x: Array, geometry: PoolGeometry, with_indices: bool = True) -> tuple[Array, Array | None]:
    """See contract.Backend.max_pool_forward."""
    xp = platform.current().xp
    y = xp.empty((*x.shape[:2], *geometry.out_spatial), x.dtype)
    indices = xp.empty(y.shape, np.int64) if with_indices else None
    lanes = lanes_for(prod(geometry.kernel))
    kernel = _MAX_POOL(TYPES[x.dtype.name], lanes)
    kernel(blocks_for(y.size * lanes), (THREADS,), x, y, indices, size(y), _as_struct(geometry))
    return y, indices


@primitive
def max_pool_backward(gy: Array, indices: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.max_pool_backward."""
    gx = platform.current().xp.empty((*gy.shape[:2], *geometry.spatial), gy.dtype)
    kernel = _MAX_POOL_GRAD(TYPES[gy.dtype.name])
    kernel(blocks_for(gx.size), (THREADS,), gy, indices, gx, size(gx), _as_struct(geometry))
    return gx


@primitive
def avg_pool_forward(x: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.avg_pool_forward."""
    y = platform.current().xp.empty((*x.shape[:2], *geometry.out_spatial), x.dtype)
    lanes = lanes_for(prod(geometry.kernel))
    kernel = _AVG_POOL(TYPES[x.dtype.name], lanes)
    kernel(blocks_for(y.size * lanes), (THREADS,), x, y, size(y), _as_struct(geometry))
    return y


@primitive
def avg_pool_backward(gy: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.avg_pool_backward."""
    gx = platform.current().xp.empty((*gy.shape[:2], *geometry.spatial), gy.dtype)
    kernel = _AVG_POOL_GRAD(TYPES[gy.dtype.name])
    kernel(blocks_for(gx.size), (THREADS,), gy, gx, size(gx), _as_struct(geometry))
    return gx


@lru_cache(maxsize=4096)
def _as_struct(geometry: PoolGeometry) -> Any:
    """The geometry with three axes, as the kernels take it."""
    pool = np.zeros((), _POOL)
    before, after = zip(*geometry.padding)
    axes = (geometry.spatial, geometry.out_spatial, geometry.kernel, geometry.stride, geometry.dilation, before, after)
    for name, numbers, missing in zip(_PER_AXIS, axes, (1, 1, 1, 1, 1, 0, 0)):
        pool[name] = (missing,) * (3 - geometry.rank) + tuple(numbers)
    pool["adaptive"] = geometry.is_adaptive
    pool["pad"] = geometry.count_include_pad
    pool["divisor"] = geometry.divisor_override or 0
    return pool
