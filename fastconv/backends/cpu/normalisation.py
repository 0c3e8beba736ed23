"""Batch normalisation and sums over batch and space, CPU backend. See contract.py.

An array (N, C, *S) is N·C planes, each cut into runs of at most 8192 elements: a run is one task and stays in the
first-level cache while it is read twice, for its mean and for the squares about that mean. The moments of the runs are
then put together in a fixed order (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance").
Cost: one pass over memory for the statistics, one for the application.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import sums
from fastconv.backends.cpu.elementary import fma
from fastconv.backends.cpu.host import kernel
from fastconv.backends.cpu.threads import parallel_for

Array = npt.NDArray[Any]

_RUN = 8192
_NS_PER_BYTE = 0.1
_NS_PER_TASK = 5.0


def channel_sum(x: Array) -> Array:
    """See contract.Backend.channel_sum."""
    partial = _per_run(lambda *args: _run_sums(x.reshape(-1), *args), x, 1)
    result: Array = partial[0].sum(axis=(0, 2)).astype(x.dtype)
    return result


def batch_norm_statistics(x: Array) -> tuple[Array, Array]:
    """See contract.Backend.batch_norm_statistics."""
    plane = math.prod(x.shape[2:])
    means, squares = _per_run(lambda *args: _run_moments(x.reshape(-1), *args), x, 2)
    sizes = np.minimum(plane - np.arange(0, plane, _RUN), _RUN).astype(np.float64)
    count = len(x) * plane
    mean = (means * sizes).sum(axis=(0, 2)) / count
    squares += sizes * (means - mean[:, None]) ** 2
    return mean, squares.sum(axis=(0, 2)) / count


def batch_norm_apply(x: Array, scale: Array, shift: Array) -> Array:
    """See contract.Backend.batch_norm_apply."""
    y = np.empty_like(x)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    scale, shift = scale.astype(x.dtype), shift.astype(x.dtype)
    _over_runs(lambda *args: _apply(flat_x, scale, shift, flat_y, *args), x, 2)
    return y


def batch_norm_backward(
    gy: Array, x: Array, mean: Array, inverse_std: Array, scale: Array
) -> tuple[Array, Array, Array]:
    """See contract.Backend.batch_norm_backward."""
    gx = np.empty_like(x)
    flat_gy, flat_x, flat_gx = gy.reshape(-1), x.reshape(-1), gx.reshape(-1)
    mean, inverse_std, scale = (a.astype(np.float64) for a in (mean, inverse_std, scale))
    partial = _per_run(lambda *args: _run_products(flat_gy, flat_x, mean, *args), x, 2)
    sum_gy, sum_gy_x = partial.sum(axis=(1, 3))
    count = max(x.size // max(x.shape[1], 1), 1)
    coefficients = np.empty((4, x.shape[1]), x.dtype)
    coefficients[0] = scale
    coefficients[1] = mean
    coefficients[2] = scale * inverse_std**2 * sum_gy_x / count
    coefficients[3] = scale * sum_gy / count
    _over_runs(lambda *args: _backward(flat_gy, flat_x, coefficients, flat_gx, *args), x, 3)
    return gx, (sum_gy_x * inverse_std).astype(x.dtype), sum_gy.astype(x.dtype)


def _per_run(call: Callable[..., None], x: Array, numbers: int) -> Array:
    """`numbers` float64 values for each run, as (numbers, N, C, runs of a plane)."""
    runs = -(-math.prod(x.shape[2:]) // _RUN)
    partial = np.empty((numbers, x.shape[0] * x.shape[1] * runs))
    _over_runs(lambda *args: call(partial, *args), x, 1)
    return partial.reshape(numbers, x.shape[0], x.shape[1], runs)


def _over_runs(call: Callable[..., None], x: Array, arrays: int) -> None:
    """`call(channels, elements of a plane, start, stop)` over all runs of x."""
    channels, plane = x.shape[1], math.prod(x.shape[2:])
    tasks = x.shape[0] * channels * -(-plane // _RUN)
    cost = tasks * _NS_PER_TASK + arrays * x.nbytes * _NS_PER_BYTE
    parallel_for(lambda start, stop: call(channels, plane, start, stop), tasks, cost)


@kernel
def _bounds(task: int, channels: int, plane: int) -> tuple[int, int, int]:
    """Channel, first and last element (exclusive) of a run."""
    runs = (plane + _RUN - 1) // _RUN
    first = task % runs * _RUN
    begin = task // runs * plane + first
    return task // runs % channels, begin, begin + min(_RUN, plane - first)


@kernel
def _run_sums(x: Any, partial: Any, channels: int, plane: int, start: int, stop: int) -> None:
    for task in range(start, stop):
        _, begin, end = _bounds(task, channels, plane)
        partial[0, task] = sums.total(x[begin:end])


@kernel
def _run_moments(x: Any, partial: Any, channels: int, plane: int, start: int, stop: int) -> None:
    for task in range(start, stop):
        _, begin, end = _bounds(task, channels, plane)
        mean = sums.total(x[begin:end]) / (end - begin)
        partial[0, task] = mean
        partial[1, task] = sums.squares_about(x[begin:end], mean)


@kernel
def _run_products(gy: Any, x: Any, mean: Any, partial: Any, channels: int, plane: int, start: int, stop: int) -> None:
    for task in range(start, stop):
        channel, begin, end = _bounds(task, channels, plane)
        partial[0, task] = sums.total(gy[begin:end])
        partial[1, task] = sums.dot_about(gy[begin:end], x[begin:end], mean[channel])


@kernel
def _apply(x: Any, scale: Any, shift: Any, y: Any, channels: int, plane: int, start: int, stop: int) -> None:
    for task in range(start, stop):
        channel, begin, end = _bounds(task, channels, plane)
        source, target = x[begin:end], y[begin:end]
        a, b = scale[channel], shift[channel]
        for i in range(source.size):
            target[i] = fma(source[i], a, b)


@kernel
def _backward(gy: Any, x: Any, coefficients: Any, gx: Any, channels: int, plane: int, start: int, stop: int) -> None:
    for task in range(start, stop):
        channel, begin, end = _bounds(task, channels, plane)
        cotangent, source, target = gy[begin:end], x[begin:end], gx[begin:end]
        scale, mean = coefficients[0, channel], coefficients[1, channel]
        slope, constant = coefficients[2, channel], coefficients[3, channel]
        for i in range(source.size):
            target[i] = fma(scale, cotangent[i], fma(-slope, source[i] - mean, -constant))
