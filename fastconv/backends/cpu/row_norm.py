"""Layer, group and instance normalisation, CPU backend, around row_norm_kernels.py. See contract.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import normalisation, normalisation_kernels
from fastconv.backends.cpu import row_norm_kernels as kernels
from fastconv.backends.cpu.host import writeable
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.normalisation_kernels import RUN
from fastconv.backends.cpu.scratch import scratch_rows
from fastconv.backends.threads import share, team_for

Array = npt.NDArray[Any]
Given = tuple[Any, ...]
"""The arguments of `row_norm_backward` as kernels take them."""

_FLOAT64 = np.dtype(np.float64)
_NS_PER_BYTE = 0.1
_NS_PER_TASK = 20.0

_LEAST_SAMPLES, _MOST_BLOCKS = 32, 64
"""Of a block, and blocks: gw and gb of each block are small beside what is read, and soon put together."""


def row_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """See contract.Backend.row_norm."""
    (rows, length), channels = x.shape, weight.shape[1]
    of_values = channels == length
    x, y, arrays = writeable(x), empty(x.shape, x.dtype), (writeable(weight), writeable(bias), eps)
    if length <= kernels.LONG:
        statistics = np.empty(rows), np.empty(rows)
        if of_values:
            _share(kernels.value_rows, (x, *arrays, *statistics, y), rows, x, 2)
        else:
            planes, target = (a.reshape(rows, channels, length // channels) for a in (x, y))
            _share(kernels.plane_rows, (x, *arrays, *statistics, planes, target), rows, x, 2)
        return y, *statistics
    statistics = normalisation.batch_norm_statistics(x[None])
    given = x.reshape(-1), weight.reshape(-1), bias.reshape(-1), eps, *statistics, y.reshape(-1)
    runs, pieces = (kernels.value_runs, 1) if of_values else (kernels.plane_runs, channels)
    tasks = rows * pieces * _runs(length // pieces)
    _share(runs, (*given, rows * pieces), tasks, x, 2)
    return y, *statistics


def row_norm_backward(
    gy: Array, x: Array, weight: Array, mean: Array, variance: Array, eps: float, weights_too: bool
) -> tuple[Array, Array, Array]:
    """See contract.Backend.row_norm_backward. The gradients of the weights come for nothing, wanted or not."""
    gx, gw, gb = empty(x.shape, x.dtype), np.empty(weight.shape, x.dtype), np.empty(weight.shape, x.dtype)
    given = writeable(gy), writeable(x), writeable(weight), eps, mean, variance
    if weight.shape[1] < x.shape[1]:
        _backward_of_planes(given, gx, gw, gb)
    elif x.shape[1] <= RUN:
        _backward_of_blocks(given, gx, gw, gb)
    else:
        _backward_of_columns(given, gx, gw, gb)
    return gx, gw, gb


def _backward_of_planes(given: Given, gx: Array, gw: Array, gb: Array) -> None:
    """With a weight for several neighbours, a plane."""
    gy, x, weight, eps, mean, variance = given
    (rows, length), channels = x.shape, weight.shape[1]
    inner = length // channels
    numbers = np.empty((4, rows * channels), x.dtype)
    if length <= kernels.LONG:
        partial = np.empty((2, rows, channels, 1))
        gy, planes, target = (a.reshape(rows, channels, inner) for a in (gy, x, gx))
        rest = weight, eps, mean, variance, partial, numbers, target
        _share(kernels.plane_rows_grad, (gy, planes, *rest), rows, x, 3)
    else:
        planes = x.reshape(1, rows * channels, inner)
        flat_gy, flat_x, loops = gy.reshape(-1), x.reshape(-1), normalisation_kernels
        of_sums = flat_gy, flat_x, mean.repeat(channels), numbers[0], None
        partial = normalisation.partial_sums(planes, 2, loops.run_products, loops.rows_products, *of_sums)
        partial = partial.reshape(2, rows, channels, _runs(inner))
        kernels.plane_numbers(partial, weight, eps, mean, variance, numbers, inner)
        of_gradient = flat_gy, flat_x, numbers, gx.reshape(-1)
        normalisation.elementwise(planes, 3, loops.run_backward, loops.rows_backward, *of_gradient)
    kernels.plane_weights_grad(partial, eps, variance, gw, gb)


def _backward_of_blocks(given: Given, gx: Array, gw: Array, gb: Array) -> None:
    """With a weight for each value, in rows that stay in the first-level cache while they are read twice."""
    x, samples = given[1], len(gx) // len(gw)
    block = max(_LEAST_SAMPLES, -(-samples // _MOST_BLOCKS))
    blocks = -(-samples // block)
    partial = np.empty((2, blocks, *gw.shape))
    team = team_for(blocks, _cost(blocks, x, 3))
    memory = scratch_rows(team.size, 2 * gw.size, x.dtype)
    kernels.value_rows_grad(*given, partial, block, gx, memory, team.address, 0, blocks)
    for sums, gradient in zip(partial, (gw, gb)):
        normalisation_kernels.combine_sums(sums.reshape(blocks, gw.size, 1), gradient.reshape(-1))


def _backward_of_columns(given: Given, gx: Array, gw: Array, gb: Array) -> None:
    """With a weight for each value, in long rows."""
    gy, x, weight, eps, mean, variance = given
    rows, length = x.shape
    partial, totals = np.empty((2, rows * _runs(length))), np.empty((2, rows))
    arrays = gy.reshape(-1), x.reshape(-1), weight.reshape(-1)
    _share(kernels.value_runs_products, (*arrays, mean, partial), partial.shape[1], x, 2)
    normalisation_kernels.combine_sums(partial.reshape(1, 2 * rows, _runs(length)), totals.reshape(-1))
    rest = length, eps, mean, variance, totals, gx.reshape(-1), gw.reshape(-1), gb.reshape(-1)
    columns = len(gw) * -(-length // kernels.COLUMNS)
    team = team_for(columns, _cost(columns, x, 3))
    memory = scratch_rows(team.size, 2 * kernels.COLUMNS, _FLOAT64)
    kernels.value_columns_grad(*arrays, *rest, memory, team.address, 0, columns)


def _runs(length: int) -> int:
    return -(-length // RUN)


def _share(loop: Callable[..., None], arguments: tuple[Any, ...], tasks: int, x: Array, streams: int) -> None:
    share(loop, arguments, tasks, _cost(tasks, x, streams))


def _cost(tasks: int, x: Array, streams: int) -> float:
    return tasks * _NS_PER_TASK + streams * x.nbytes * _NS_PER_BYTE
