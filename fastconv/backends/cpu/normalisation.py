"""Batch normalisation and sums over batch and space, CPU backend, around normalisation_kernels.py. See contract.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import normalisation_kernels as kernels
from fastconv.backends.cpu.host import flat
from fastconv.backends.cpu.memory import empty
from fastconv.backends.threads import share, team_for

Array = npt.NDArray[Any]
Loop = Callable[..., None]

_CHANNEL_BYTES = 1 << 20
"""Of one channel of all samples: twice as much, for each thread, is a small share of a last-level cache."""

_MANY_CHANNELS = 8
"""Enough to share them among threads."""

_LONG_PLANE = 4096
"""Elements: shorter pieces of memory are found too late to be asked for ahead."""

_NS_PER_BYTE = 0.1
_NS_PER_TASK = 5.0


def channel_sum(x: Array) -> Array:
    """See contract.Backend.channel_sum."""
    samples, channels, plane = len(x), x.shape[1], math.prod(x.shape[2:])
    result = np.empty(channels, x.dtype)
    if plane > 1:
        partial = np.empty((samples, channels, -(-plane // kernels.RUN)))
        team = team_for(partial.size, _cost(partial.size, x, 1))
        kernels.run_sums(flat(x), partial, result, plane, team.address, 0, partial.size)
    else:
        partial = np.empty((-(-samples // kernels.ROWS), channels, 1))
        team = team_for(len(partial), _cost(len(partial), x, 1))
        kernels.rows_sums(flat(x), partial, result, team.address, 0, len(partial))
    if team.size > 1:
        kernels.combine_sums(partial, result)
    return result


def batch_norm_statistics(x: Array) -> tuple[Array, Array]:
    """See contract.Backend.batch_norm_statistics."""
    partial = partial_sums(x, 2, kernels.run_moments, kernels.rows_moments, flat(x))
    if _has_space(x):
        sizes = part_sizes(math.prod(x.shape[2:]), kernels.RUN)[None].repeat(len(x), 0)
    else:
        sizes = part_sizes(len(x), kernels.ROWS)[:, None]
    mean, variance = np.empty(x.shape[1]), np.empty(x.shape[1])
    kernels.combine_moments(partial[0], partial[1], sizes, mean, variance)
    return mean, variance


def batch_norm_apply(x: Array, scale: Array, shift: Array) -> Array:
    """See contract.Backend.batch_norm_apply."""
    y = empty(x.shape, x.dtype)
    numbers = scale.astype(x.dtype), shift.astype(x.dtype)
    elementwise(x, 2, kernels.run_apply, kernels.rows_apply, flat(x), *numbers, y.reshape(-1))
    return y


def batch_norm_backward(
    gy: Array, x: Array, mean: Array, inverse_std: Array, scale: Array, of_batch: bool
) -> tuple[Array, Array, Array]:
    """See contract.Backend.batch_norm_backward."""
    gx = empty(x.shape, x.dtype)
    flat_gy, flat_x, flat_gx = flat(gy), flat(x), gx.reshape(-1)
    mean, inverse_std, scale = (a.astype(np.float64, copy=False) for a in (mean, inverse_std, scale))
    gw, gb = np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    numbers = np.empty((4, x.shape[1]), x.dtype)
    if of_batch and _fits_by_channels(x):
        statistics = mean, inverse_std, scale, numbers, gw, gb
        work = flat_gy, flat_x, *statistics, flat_gx, len(x), math.prod(x.shape[2:])
        _share(kernels.channels_backward, work, x.shape[1], x, 4)
        return gx, gw, gb
    arrays = flat_gy, flat_x, mean, scale.astype(x.dtype), None if of_batch else flat_gx
    totals, products = partial_sums(x, 2, kernels.run_products, kernels.rows_products, *arrays)
    count = max(x.size // max(x.shape[1], 1), 1)
    kernels.combine_products(totals, products, mean, inverse_std, scale, count, numbers, gw, gb)
    if of_batch:
        elementwise(x, 3, kernels.run_backward, kernels.rows_backward, flat_gy, flat_x, numbers, flat_gx)
    return gx, gw, gb


def _fits_by_channels(x: Array) -> bool:
    """Whether a channel of all samples and its gradient stay in a cache, in pieces long enough to be read fast."""
    channels, plane = x.shape[1], math.prod(x.shape[2:])
    return channels >= _MANY_CHANNELS and plane >= _LONG_PLANE and 0 < x.nbytes <= _CHANNEL_BYTES * channels


def part_sizes(size: int, most: int) -> Array:
    """Of the parts of at most `most` into which so many are cut."""
    return np.minimum(size - np.arange(0, size, most), most)


def _has_space(x: Array) -> bool:
    """Whether a channel of a sample is more than one value."""
    return math.prod(x.shape[2:]) > 1


def partial_sums(x: Array, sums: int, over_runs: Loop, over_rows: Loop, *arrays: Any) -> Array:
    """`sums` float64 numbers for each part and channel: (sums, N, C, runs of a plane) or (sums, blocks of N, C, 1)."""
    samples, channels, plane = *x.shape[:2], math.prod(x.shape[2:])
    if _has_space(x):
        runs = -(-plane // kernels.RUN)
        tasks = samples * channels * runs
        partial = np.empty((sums, tasks))
        _share(over_runs, (*arrays, partial, channels, plane), tasks, x, 1)
        return partial.reshape(sums, samples, channels, runs)
    blocks = -(-samples // kernels.ROWS)
    partial = np.empty((sums, blocks * channels))
    _share(over_rows, (*arrays, partial, channels), blocks, x, 1)
    return partial.reshape(sums, blocks, channels, 1)


def elementwise(x: Array, streams: int, over_runs: Loop, over_rows: Loop, *arrays: Array) -> None:
    """`over_runs` or `over_rows` of the whole of x, which reads and writes `streams` arrays of its size."""
    samples, channels, plane = *x.shape[:2], math.prod(x.shape[2:])
    if _has_space(x):
        tasks = samples * channels * -(-plane // kernels.RUN)
        _share(over_runs, (*arrays, channels, plane), tasks, x, streams)
    else:
        _share(over_rows, (*arrays, channels), samples, x, streams)


def _share(loop: Loop, arguments: tuple[Any, ...], tasks: int, x: Array, streams: int) -> None:
    share(loop, arguments, tasks, _cost(tasks, x, streams))


def _cost(tasks: int, x: Array, streams: int) -> float:
    return tasks * _NS_PER_TASK + streams * x.nbytes * _NS_PER_BYTE
