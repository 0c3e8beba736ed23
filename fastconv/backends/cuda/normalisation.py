"""Sums over batch and space, and batch normalisation: kernels/normalisation.cu."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, blocks_for, channel_parts, channels_across, columns_for, planes_grid
from fastconv.backends.cuda.module import TYPES, Template

Array = Any

_FILE, _BY_TYPE = "normalisation.cu", list(product(TYPES.values()))
_PART_MOMENTS = Template(_FILE, "part_moments", _BY_TYPE)
_MERGE_MOMENTS = Template(_FILE, "merge_moments", [()])
_PART_SUMS = Template(_FILE, "part_sums", _BY_TYPE)
_MERGE_SUMS = Template(_FILE, "merge_sums", _BY_TYPE)
_PART_PRODUCTS = Template(_FILE, "part_products", _BY_TYPE)
_MERGE_PRODUCTS = Template(_FILE, "merge_products", _BY_TYPE)
_APPLY = Template(_FILE, "apply", _BY_TYPE)
_APPLY_GRAD = Template(_FILE, "apply_grad", _BY_TYPE)

_SHAPE = np.dtype(
    [("rows", "i8"), ("channels", "i4"), ("plane", "i8"), ("columns", "i4"), ("across", "i4")], align=True
)
"""`Shape` of the kernels."""
MOMENTS, SUMS = 3, 2
"""Doubles of a part."""


@primitive
def channel_sum(x: Array) -> Array:
    """See contract.Backend.channel_sum."""
    xp, channels = platform.current().xp, x.shape[1]
    if not x.size:
        return xp.zeros(channels, x.dtype)
    parts = channel_sums(_PART_SUMS, SUMS, x)
    y = xp.empty(channels, x.dtype)
    _MERGE_SUMS(TYPES[x.dtype.name])(blocks_for(channels), (THREADS,), parts, y, channels, parts.shape[1])
    return y


@primitive
def batch_norm_statistics(x: Array) -> tuple[Array, Array]:
    """See contract.Backend.batch_norm_statistics."""
    return merged_moments(channel_sums(_PART_MOMENTS, MOMENTS, x))


@primitive
def batch_norm_apply(x: Array, scale: Array, shift: Array) -> Array:
    """See contract.Backend.batch_norm_apply."""
    y = platform.current().xp.empty(x.shape, x.dtype)
    shape = _shape(x)
    _APPLY(TYPES[x.dtype.name])(_planes(x), (THREADS,), x, scale, shift, y, shape)
    return y


@primitive
def batch_norm_backward(
    gy: Array, x: Array, mean: Array, inverse_std: Array, scale: Array, of_batch: bool
) -> tuple[Array, Array, Array]:
    """See contract.Backend.batch_norm_backward."""
    xp, channels, dtype = platform.current().xp, x.shape[1], TYPES[x.dtype.name]
    if not x.size:
        return xp.empty(x.shape, x.dtype), xp.zeros(channels, x.dtype), xp.zeros(channels, x.dtype)
    parts = channel_sums(_PART_PRODUCTS, SUMS, gy, x, mean)
    numbers = xp.empty((3, channels), np.float64)
    gw, gb = xp.empty(channels, x.dtype), xp.empty(channels, x.dtype)
    elements = np.float64(x.size // channels)
    merge = _MERGE_PRODUCTS(dtype)
    merge(
        blocks_for(channels), (THREADS,), parts, mean, inverse_std, scale, numbers, gw, gb, channels, parts.shape[1],
        elements,
    )  # fmt: skip
    if not of_batch:
        return batch_norm_apply(gy, scale, xp.zeros_like(scale)), gw, gb
    gx = xp.empty(x.shape, x.dtype)
    _APPLY_GRAD(dtype)(_planes(x), (THREADS,), gy, x, mean, numbers, gx, _shape(x))
    return gx, gw, gb


def merged_moments(parts: Array) -> tuple[Array, Array]:
    """Mean and variance from the parts (C, parts, MOMENTS) of each channel."""
    xp, (channels, count, _) = platform.current().xp, parts.shape
    mean, variance = xp.empty(channels, np.float64), xp.empty(channels, np.float64)
    _MERGE_MOMENTS()(blocks_for(channels), (THREADS,), parts, mean, variance, channels, count)
    return mean, variance


def channel_sums(template: Template, doubles: int, first: Array, *others: Array) -> Array:
    """What each part of each channel of `first` came to: (C, parts, doubles), float64."""
    rows, channels, plane = first.shape[0], first.shape[1], prod(first.shape[2:])
    count = channel_parts(rows, plane)
    parts = platform.current().xp.empty((channels, count, doubles), np.float64)
    kernel = template(TYPES[first.dtype.name])
    kernel((-(-channels // channels_across(plane)), count), (THREADS,), first, *others, parts, _shape(first))
    return parts


def _shape(x: Array) -> Any:
    plane = prod(x.shape[2:])
    return np.array((x.shape[0], x.shape[1], plane, columns_for(plane), channels_across(plane)), _SHAPE)


def _planes(x: Array) -> tuple[int, int]:
    return planes_grid(x.shape[0] * x.shape[1], prod(x.shape[2:]))
