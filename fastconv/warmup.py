"""Compiling ahead: small calls that need the kernels of usual networks, so that no later process waits for a compiler.

A kernel is compiled when it is first called with a dtype, and kept in Numba's cache on disk. Rank, shapes and number of
threads are no matter; so one call for each algorithm and dtype, forward and backward, is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from fastconv.autograd import Tensor, concatenate
from fastconv.backends.cpu import host
from fastconv.ops import convolution, losses, normalisation, pointwise, pooling, resampling
from fastconv.ops.dense import linear

DTYPES = ("float32", "float64")

# Channels and size of the input, filters, kernel, groups, stride: what leads to each algorithm, and Winograd's tiles.
_CONVOLUTIONS = (
    (4, 32, 6, (3, 3), 1, 1),
    (4, 20, 32, (3, 3), 1, 2),
    (4, 8, 4, (3, 3), 1, 1),
    (8, 20, 8, (1, 1), 1, 1),
    (8, 7, 64, (5, 5), 1, 1),
    (64, 20, 32, (1, 1), 1, 2),
    (12, 20, 12, (3, 5), 12, 1),
    (1, 20, 2, (3, 5), 1, 1),
    *((3, 20, 3, (side, side), 3, stride) for side in (3, 5, 7) for stride in (1, 2)),
    (32, 32, 32, (3, 3), 1, 1),
    (128, 8, 128, (3, 3), 1, 1),
    (64, 9, 64, (3, 3), 1, 1),
    (32, 32, 32, (5, 5), 1, 1),
    (48, 32, 48, (1, 3), 1, 1),
    (32, 32, 32, (1, 5), 1, 1),
    (32, 32, 32, (1, 7), 1, 1),
    (3, 64, 64, (7, 7), 1, 2),
    (64, 56, 128, (3, 3), 1, 2),
    (128, 28, 128, (3, 3), 1, 2),
    (16, 100, 16, (15, 15), 1, 1),
)
_PATCHES = (4, 16, 8, 4)  # channels, size, filters, and kernel and stride
_POOLS = (pooling.max_pool2d, pooling.avg_pool2d, pooling.adaptive_max_pool2d, pooling.adaptive_avg_pool2d)
_POOL_SIZES = (6, 16, 512)  # planes that are pooled through tables, by vectors of windows, and row by row

_DENSE = ((32, 8), (3, 200))  # rows and features: few features, and many
_SHARED = 1 << 20  # elements that are worth a thread more
_BATCH_NORMS = (4, 64)  # planes whose gradient takes two passes over all channels, and those that go one by one
_GROUP_NORMS = (((2, 8, 4, 4), 2), ((1, 2, 256, 256), 1))  # rows that stay in the cache, and long ones


class Step(NamedTuple):
    """One call that was made: what it was, for which dtype, how many kernels it compiled and how long it took."""

    name: str
    dtype: str
    compiled: int
    seconds: float


def run() -> Iterator[Step]:
    """Make the calls one by one."""
    for dtype in DTYPES:
        for name, call in _calls(dtype):
            before, began = host.compilations(), perf_counter()
            call()
            yield Step(name, dtype, host.compilations() - before, perf_counter() - began)


def _calls(dtype: str) -> Iterator[tuple[str, Callable[[], None]]]:
    for channels, size, filters, kernel, groups, stride in _CONVOLUTIONS:
        x, w = _tensor(dtype, 1, channels, size, size), _tensor(dtype, filters, channels // groups, *kernel)
        window: dict[str, Any] = {"stride": stride, "padding": tuple(k // 2 for k in kernel), "groups": groups}
        convolve, chosen = partial(convolution.conv2d, **window), convolution.explain(x, w, **window)
        names = dict.fromkeys((chosen.forward, chosen.input_grad, chosen.weight_grad))
        yield f"convolution: {', '.join(names)}", partial(_backward, convolve, x, w, _tensor(dtype, filters))
    channels, size, filters, patch = _PATCHES
    x, w = _tensor(dtype, 1, channels, size, size), _tensor(dtype, filters, channels, patch, patch)
    yield "convolution: patches", partial(_backward, partial(convolution.conv2d, stride=patch), x, w)
    for size in _POOL_SIZES:
        x = _tensor(dtype, 1, 2, size, size)
        for pool in _POOLS:
            yield f"{pool.__name__}, {size}×{size}", partial(_pool, pool, x)
    yield "interpolate", partial(_backward, partial(resampling.interpolate, scale_factor=2), _tensor(dtype, 1, 2, 9, 9))
    x = _tensor(dtype, 4, 8)
    for name in pointwise.ACTIVATIONS:
        yield name, partial(_backward, partial(pointwise.apply, name), x)
    for rows, features in _DENSE:
        operands = _tensor(dtype, 4, features), _tensor(dtype, rows, features), _tensor(dtype, rows)
        yield f"linear, {features} to {rows}", partial(_backward, linear, *operands)
    yield "cross entropy", partial(_backward, losses.cross_entropy, x, np.zeros(4, np.int64))
    for shape, groups in _GROUP_NORMS:
        yield f"group norm, {shape}", partial(_backward, partial(_group_norm, groups), *_normed(dtype, shape))
    yield "layer norm", partial(_backward, _layer_norm, *_normed(dtype, (4, 8)))
    yield "concatenate, shared by threads", partial(_concatenate, dtype)
    for size in _BATCH_NORMS:
        images = _tensor(dtype, 2, 8, size, size)
        yield f"batch norm, {size}×{size}", partial(_backward, partial(_batch_norm, dtype), images)


def _concatenate(dtype: str) -> None:
    concatenate([np.ones(_SHARED, dtype), np.ones(_SHARED, dtype)])


def _tensor(dtype: str, *shape: int) -> Tensor:
    return Tensor(np.ones(shape, dtype), requires_grad=True)


def _backward(operation: Callable[..., Any], *operands: Any) -> None:
    y = operation(*operands)
    y.backward(np.ones(y.shape, y.dtype))


def _pool(pool: Callable[..., Any], x: Tensor) -> None:
    pool(x.data, 2)  # without a gradient no places are kept, by another kernel
    _backward(pool, x, 2)


def _normed(dtype: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """An input, and a weight and a bias for its second axis."""
    return _tensor(dtype, *shape), _tensor(dtype, shape[1]), _tensor(dtype, shape[1])


def _group_norm(groups: int, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return normalisation.group_norm(x, groups, weight, bias)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return normalisation.layer_norm(x, x.shape[1], weight, bias)


def _batch_norm(dtype: str, x: Tensor) -> Any:
    ones = np.ones(x.shape[1], dtype)
    return normalisation.batch_norm(x, ones, ones.copy(), _tensor(dtype, 8), _tensor(dtype, 8), training=True)
