"""Pooling primitives of the CPU backend: what the kernels of max_pool.py and avg_pool.py are told. See contract.py.

Every rank is lifted to three axes, and every kind of window (strided, dilated, padded, adaptive) to the same tables:
for each output of an axis its first tap and its end inside the input. Axes that a window covers completely are merged,
so that global pooling is one long run. A row of outputs whose windows are complete and equally spaced, its interior,
is computed tap by tap for all its columns at once; the few columns at the borders, long windows and irregular ones are
computed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import avg_pool, max_pool
from fastconv.backends.cpu.pool_rows import COLUMNS
from fastconv.backends.cpu.threads import parallel_for
from fastconv.geometry import PoolGeometry

Array = npt.NDArray[Any]

_NS_PER_TAP = 0.3
_NS_PER_ROW = 20.0
_MIN_INTERIOR = 8  # fewer columns do not pay for the loop over taps
_MAX_INTERIOR_STRIDE = 8  # with larger ones every tap is a cache line of its own


@dataclass(frozen=True, eq=False)
class _Plan:
    """Windows of a geometry as the kernels take them, three axes each."""

    windows: tuple[Array, Array, Array]  # of each axis: int64 (2, outputs), first taps and ends
    divisors: tuple[Array, Array, Array]  # of each axis: float64 (outputs,)
    sizes: tuple[int, int, int]
    steps: tuple[int, int, int]
    interior: tuple[int, int, int]  # first column, end, distance of the windows
    taps: int

    @property
    def outputs(self) -> int:
        depth, height, width = self.windows
        return len(depth[0]) * len(height[0]) * len(width[0])

    @property
    def row_tasks(self) -> int:
        """Tasks of a plane: rows of outputs, cut into blocks of columns."""
        depth, height, width = self.windows
        return len(depth[0]) * len(height[0]) * -(-len(width[0]) // COLUMNS)


def max_pool_forward(x: Array, geometry: PoolGeometry, with_indices: bool = True) -> tuple[Array, Array | None]:
    """See contract.Backend.max_pool_forward."""
    plan = _plan(geometry)
    y = np.empty(x.shape[:2] + geometry.out_spatial, x.dtype)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    arguments = (*plan.windows, plan.sizes, plan.steps, plan.interior)
    if not with_indices:
        _over_rows(lambda start, stop: max_pool.values(flat_x, flat_y, *arguments, start, stop), plan, x)
        return y, None
    indices = np.empty(y.shape, np.int64)
    flat_indices = indices.reshape(-1)
    _over_rows(
        lambda start, stop: max_pool.values_and_indices(flat_x, flat_y, flat_indices, *arguments, start, stop), plan, x
    )
    return y, indices


def max_pool_backward(gy: Array, indices: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.max_pool_backward."""
    gx = np.empty(gy.shape[:2] + geometry.spatial, gy.dtype)
    flat_gy, flat_indices, flat_gx = gy.reshape(-1), indices.reshape(-1), gx.reshape(-1)
    outputs, inputs = math.prod(geometry.out_spatial), math.prod(geometry.spatial)
    parallel_for(
        lambda start, stop: max_pool.gradient(flat_gy, flat_indices, flat_gx, outputs, inputs, start, stop),
        gy.shape[0] * gy.shape[1],
        gy.size * 1.5 + gx.nbytes * 0.05,
    )
    return gx


def avg_pool_forward(x: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.avg_pool_forward."""
    plan = _plan(geometry)
    y = np.empty(x.shape[:2] + geometry.out_spatial, x.dtype)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    arguments = (*plan.windows, *plan.divisors, plan.sizes, plan.steps, plan.interior)
    _over_rows(lambda start, stop: avg_pool.averages(flat_x, flat_y, *arguments, start, stop), plan, x)
    return y


def avg_pool_backward(gy: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.avg_pool_backward."""
    plan = _plan(geometry)
    gx = np.empty(gy.shape[:2] + geometry.spatial, gy.dtype)
    flat_gy, flat_gx = gy.reshape(-1), gx.reshape(-1)
    arguments = (*plan.windows, *plan.divisors, plan.sizes, plan.steps, plan.interior)
    parallel_for(
        lambda start, stop: avg_pool.gradient(flat_gy, flat_gx, *arguments, start, stop),
        gy.shape[0] * gy.shape[1],
        gy.size * plan.taps * _NS_PER_TAP + gx.nbytes * 0.05,
    )
    return gx


def _over_rows(call: Callable[[int, int], Any], plan: _Plan, x: Array) -> None:
    planes = x.shape[0] * x.shape[1]
    tasks = planes * plan.row_tasks
    parallel_for(call, tasks, planes * plan.outputs * plan.taps * _NS_PER_TAP + tasks * _NS_PER_ROW)


@lru_cache(maxsize=128)
def _plan(geometry: PoolGeometry) -> _Plan:
    kernel, stride, sizes = list(geometry.kernel), list(geometry.stride), list(geometry.spatial)
    windows = [(np.array(table[:2], np.int64), table[2]) for table in geometry.windows()]
    counts = geometry.divisors()
    if counts is None:
        counts = tuple((1,) * size for size in geometry.out_spatial)
        counts = ((geometry.divisor_override or 1,) * geometry.out_spatial[0], *counts[1:])
    divisors = [np.array(count, np.float64) for count in counts]
    for axis in reversed(range(len(sizes) - 1)):
        if all(_covers(*windows[a], sizes[a]) for a in (axis, axis + 1)):
            kernel[axis], stride[axis] = kernel[axis] * kernel.pop(axis + 1), stride.pop(axis + 1)
            sizes[axis] *= sizes.pop(axis + 1)
            divisors[axis] = divisors[axis] * divisors.pop(axis + 1)
            del windows[axis + 1]
            windows[axis] = (np.array([[0], [sizes[axis]]]), 1)
    low, high = (0, 0) if geometry.is_adaptive else _interior(*windows[-1], kernel[-1], stride[-1])
    if math.prod(sizes) >= 2**31:  # interiors count in 32 bits
        low = high = 0
    missing = 3 - len(sizes)
    lifted = [(np.array([[0], [1]]), 1)] * missing + windows
    tables: Any = tuple(window for window, _ in lifted)
    steps: Any = tuple(step for _, step in lifted)
    return _Plan(
        windows=tables,
        divisors=(np.ones(1),) * missing + tuple(divisors),  # type: ignore[arg-type]
        sizes=(1,) * missing + tuple(sizes),  # type: ignore[arg-type]
        steps=steps,
        interior=(low, high, stride[-1]),
        taps=math.prod(kernel),
    )


def _covers(window: Array, step: int, size: int) -> bool:
    return window.shape[1] == 1 and window[0, 0] == 0 and window[1, 0] == size and (step == 1 or size == 1)


def _interior(window: Array, step: int, taps: int, stride: int) -> tuple[int, int]:
    """First column and end of the columns to be computed together."""
    complete = np.flatnonzero(-(-(window[1] - window[0]) // step) == taps)
    if len(complete) < _MIN_INTERIOR or stride > _MAX_INTERIOR_STRIDE:
        return 0, 0
    return int(complete[0]), int(complete[-1]) + 1
