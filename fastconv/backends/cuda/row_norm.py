"""Layer, group and instance normalisation: kernels/row_norm.cu."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from fastconv.backends.cuda import normalisation, platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, blocks_for, planes_grid, row_parts
from fastconv.backends.cuda.module import TYPES, Template

Array = Any

WARP, SHORT = 32, 1024
"""A row of up to SHORT values is the work of one warp."""

_FILE, _BY_TYPE = "row_norm.cu", list(product(TYPES.values()))
_BY_THREADS = list(product(TYPES.values(), (WARP, THREADS)))
_ROW_NORM = Template(_FILE, "row_norm", _BY_THREADS)
_PART_MOMENTS = Template(_FILE, "part_row_moments", _BY_TYPE)
_APPLY = Template(_FILE, "apply_row_norm", _BY_TYPE)
_GRAD = Template(_FILE, "row_norm_grad", _BY_THREADS)
_PART_PRODUCTS = Template(_FILE, "part_row_products", _BY_TYPE)
_APPLY_GRAD = Template(_FILE, "apply_row_norm_grad", _BY_TYPE)
_PART_WEIGHT_PRODUCTS = Template(_FILE, "part_weight_products", _BY_TYPE)
_MERGE_WEIGHT_PRODUCTS = Template(_FILE, "merge_weight_products", _BY_TYPE)

_TABLE = np.dtype([("length", "i8"), ("inner", "i8"), ("groups", "i4")], align=True)
"""`Table` of the kernels."""


@primitive
def row_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """See contract.Backend.row_norm."""
    xp, dtype, (rows, length) = platform.current().xp, TYPES[x.dtype.name], x.shape
    y, table, parts = xp.empty(x.shape, x.dtype), _table(x, weight), row_parts(length)
    if parts == 1:
        mean, variance = xp.empty(rows, np.float64), xp.empty(rows, np.float64)
        threads = _threads(length)
        arguments = x, weight, bias, np.float64(eps), mean, variance, y, table
        _ROW_NORM(dtype, threads)((rows,), (threads,), *arguments)
        return y, mean, variance
    moments = xp.empty((rows, parts, normalisation.MOMENTS), np.float64)
    _PART_MOMENTS(dtype)((rows, parts), (THREADS,), x, moments, np.int64(length))
    mean, variance = normalisation.merged_moments(moments)
    arguments = x, weight, bias, np.float64(eps), mean, variance, y, table
    _APPLY(dtype)(planes_grid(rows, length), (THREADS,), *arguments)
    return y, mean, variance


@primitive
def row_norm_backward(
    gy: Array, x: Array, weight: Array, mean: Array, variance: Array, eps: float, weights_too: bool
) -> tuple[Array, Array | None, Array | None]:
    """See contract.Backend.row_norm_backward."""
    xp, dtype, (rows, length) = platform.current().xp, TYPES[x.dtype.name], x.shape
    gx, table, parts = xp.empty(x.shape, x.dtype), _table(x, weight), row_parts(length)
    inverse_std = 1.0 / xp.sqrt(variance + eps)
    if parts == 1:
        threads = _threads(length)
        _GRAD(dtype, threads)((rows,), (threads,), gy, x, weight, mean, inverse_std, gx, table)
    else:
        sums = xp.empty((rows, parts, normalisation.SUMS), np.float64)
        _PART_PRODUCTS(dtype)((rows, parts), (THREADS,), gy, x, weight, mean, sums, table)
        arguments = gy, x, weight, mean, inverse_std, sums, parts, gx, table
        _APPLY_GRAD(dtype)(planes_grid(rows, length), (THREADS,), *arguments)
    return gx, *(_weights_grad(gy, x, weight, mean, inverse_std) if weights_too else (None, None))


def _weights_grad(gy: Array, x: Array, weight: Array, mean: Array, inverse_std: Array) -> tuple[Array, Array]:
    xp, groups, channels = platform.current().xp, len(weight), weight.size
    if not x.size:
        return xp.zeros(weight.shape, x.dtype), xp.zeros(weight.shape, x.dtype)
    in_channels = gy.reshape(len(x) // groups, channels, x.shape[1] // weight.shape[1])
    parts = normalisation.channel_sums(
        _PART_WEIGHT_PRODUCTS, normalisation.SUMS, in_channels, x, mean, inverse_std, groups
    )
    gw, gb = xp.empty(weight.shape, x.dtype), xp.empty(weight.shape, x.dtype)
    merge = _MERGE_WEIGHT_PRODUCTS(TYPES[x.dtype.name])
    merge(blocks_for(channels), (THREADS,), parts, gw, gb, channels, parts.shape[1])
    return gw, gb


def _table(x: Array, weight: Array) -> Any:
    groups, channels = weight.shape
    return np.array((x.shape[1], x.shape[1] // channels, groups), _TABLE)


def _threads(length: int) -> int:
    return WARP if length <= SHORT else THREADS
