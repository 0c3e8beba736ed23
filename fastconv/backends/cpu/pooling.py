"""Pooling primitives of the CPU backend, in the lanes, by regular windows or by rows. See contract.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import avg_pool, max_pool, pool_lanes
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.plane_lanes import fills_lanes
from fastconv.backends.cpu.pool_lanes import Table
from fastconv.backends.cpu.pool_rows import RowPlan, row_plan
from fastconv.backends.cpu.pool_windows import WindowPlan, window_plan
from fastconv.backends.cpu.resampling import resample
from fastconv.backends.cpu.scratch import scratch_rows
from fastconv.backends.threads import share, team_for
from fastconv.geometry import PoolGeometry, ResampleGeometry
from fastconv.geometry.resampling import interpolation

Array = npt.NDArray[Any]
Loop = Callable[..., None]

_BAND = 1 << 16
"""Elements of a plane's gradient in one task, about."""

_SPREAD_OUTPUTS = 32
"""Outputs of a plane from which its shares are spread by interpolation, two to five times as fast as by a table."""

_NS_PER_TAP = 1.0
_NS_PER_WINDOW_TAP = 0.25
_NS_PER_ROW = 20.0
_NS_PER_PLANE = 15.0
_NS_PER_BYTE = 0.05


def max_pool_forward(x: Array, geometry: PoolGeometry, with_indices: bool = True) -> tuple[Array, Array | None]:
    """See contract.Backend.max_pool_forward."""
    y = empty(x.shape[:2] + geometry.out_spatial, x.dtype)
    indices = empty(y.shape, np.dtype(np.int64)) if with_indices else None
    found = None if indices is None else indices.reshape(-1)
    flat = x.reshape(-1), y.reshape(-1), found
    table = pool_lanes.max_table(geometry, x.itemsize)
    plan = None if table is not None and fills_lanes(x) else window_plan(geometry, x.itemsize)
    if table is not None and plan is None:  # regular windows of few planes go along rows, with the same bits
        _over_planes(pool_lanes.largest, (*flat, table.taps, table.offsets), table, x)
    elif plan is not None:
        _over_windows(max_pool.windows, (*flat, plan.axes, plan.block, plan.firsts), plan, x)
    else:
        rows = row_plan(geometry)
        _over_rows(max_pool.rows, (*flat, *rows.windows, rows.sizes, rows.steps, rows.spans), rows, x)
    return y, indices


def max_pool_backward(gy: Array, indices: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.max_pool_backward."""
    gx = empty(gy.shape[:2] + geometry.spatial, gy.dtype)
    flat_gy, flat_indices, flat_gx = gy.reshape(-1), indices.reshape(-1), gx.reshape(-1)
    outputs, inputs = math.prod(geometry.out_spatial), math.prod(geometry.spatial)
    bands = _bands(geometry)
    arguments = (flat_gy, flat_indices, flat_gx, bands, outputs, inputs)
    tasks, cost = gy.shape[0] * gy.shape[1] * len(bands), gy.size * 1.5 + gx.nbytes * _NS_PER_BYTE
    share(max_pool.gradient, arguments, tasks, cost)
    return gx


@lru_cache(maxsize=64)
def _bands(geometry: PoolGeometry) -> Array:
    """Bands of the first axis, so that one large plane occupies several threads: see `max_pool.gradient`."""
    starts, stops, _ = (np.array(table) for table in geometry.windows()[0])
    size, inner, outputs = geometry.spatial[0], math.prod(geometry.spatial[1:]), math.prod(geometry.out_spatial[1:])
    rows = max(1, _BAND // inner)
    first = np.arange(0, size, rows)
    end = np.minimum(first + rows, size)
    starts = np.minimum.accumulate(starts[::-1])[::-1]  # with padding and dilation the first ones are out of order
    begin, last = np.searchsorted(stops, first, "right"), np.searchsorted(starts, end, "left")
    return np.stack([first * inner, end * inner, begin * outputs, last * outputs], 1)


def avg_pool_forward(x: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.avg_pool_forward."""
    y = empty(x.shape[:2] + geometry.out_spatial, x.dtype)
    flat = (x.reshape(-1), y.reshape(-1))
    if _is_global(geometry):
        plane = math.prod(geometry.spatial)
        divisor = float(geometry.divisor_override or plane)
        share(avg_pool.whole_planes, (*flat, plane, divisor), y.size, y.size * _NS_PER_PLANE + x.nbytes * _NS_PER_BYTE)
        return y
    table = pool_lanes.sum_table(geometry, x.itemsize)
    plan = None if table is not None and fills_lanes(x) else window_plan(geometry, x.itemsize)
    if table is not None and plan is None:
        _over_planes(pool_lanes.averages, (*flat, table.offsets, table.factors, table.shares), table, x)
    elif plan is not None:
        _over_windows(avg_pool.windows, (*flat, plan.axes, plan.block, plan.divisors), plan, x)
    else:
        rows = row_plan(geometry)
        arguments = (*flat, *rows.windows, *rows.divisors, rows.sizes, rows.steps, rows.spans)
        _over_rows(avg_pool.rows, arguments, rows, x)
    return y


def _is_global(geometry: PoolGeometry) -> bool:
    """Whether the only window is the whole plane."""
    if any(size > 1 for size in geometry.out_spatial) or any(map(any, geometry.padding)):
        return False
    return geometry.is_adaptive or (geometry.kernel == geometry.spatial and set(geometry.dilation) == {1})


def avg_pool_backward(gy: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.avg_pool_backward."""
    table = pool_lanes.spread_table(geometry, gy.itemsize)
    if table is None and _side_by_side(geometry):
        divisor = geometry.divisor_override or math.prod(geometry.kernel)
        return resample(gy / gy.dtype.type(divisor), _spread(geometry))
    gx = empty(gy.shape[:2] + geometry.spatial, gy.dtype)
    flat_gy, flat_gx = gy.reshape(-1), gx.reshape(-1)
    if table is not None:
        _over_planes(pool_lanes.averages, (flat_gy, flat_gx, table.offsets, table.factors, table.shares), table, gy)
        return gx
    turned, divisors = _turned(geometry)
    plan = None if turned is None else window_plan(turned, gy.itemsize)
    if plan is not None:
        if divisors is not None:
            flat_gy = np.divide(gy, divisors.astype(gy.dtype), out=empty(gy.shape, gy.dtype)).reshape(-1)
        _over_windows(avg_pool.windows, (flat_gy, flat_gx, plan.axes, plan.block, plan.divisors), plan, gy)
        return gx
    rows = row_plan(geometry)
    arguments = (*rows.windows, *rows.divisors, rows.sizes, rows.steps, rows.interior)
    planes, cost = gy.shape[0] * gy.shape[1], gy.size * rows.taps * _NS_PER_TAP + gx.nbytes * _NS_PER_BYTE
    team = team_for(planes, cost)
    memory = scratch_rows(team.size, geometry.out_spatial[-1] + rows.sizes[2], gx.dtype)
    avg_pool.gradient(flat_gy, flat_gx, *arguments, memory, team.address, 0, planes)
    return gx


@lru_cache(maxsize=64)
def _turned(geometry: PoolGeometry) -> tuple[PoolGeometry | None, Array | None]:
    """For windows at every place the gradient as an average of its own: over the outputs that read an input.

    None where windows have a stride. And, unless all windows are divided by the same, what each is divided by before.
    """
    if geometry.is_adaptive or set(geometry.stride) != {1}:
        return None, None
    reach = [dilation * (taps - 1) for taps, dilation in zip(geometry.kernel, geometry.dilation)]
    padding = tuple((far - before, far - after) for far, (before, after) in zip(reach, geometry.padding))
    divisors = pool_lanes.divisors(geometry).reshape(geometry.out_spatial)
    uniform = divisors.size and (divisors == divisors.flat[0]).all()
    turned = PoolGeometry(
        geometry.out_spatial, geometry.kernel, geometry.stride, padding, geometry.dilation, geometry.spatial,
        divisor_override=int(divisors.flat[0]) if uniform else 1,
    )  # fmt: skip
    return turned, None if uniform else divisors


def _side_by_side(geometry: PoolGeometry) -> bool:
    """Whether each input lies in one window and takes that one's share, of planes that are worth an interpolation."""
    sizes = zip(geometry.spatial, geometry.kernel, geometry.out_spatial)
    whole = geometry.kernel == geometry.stride and all(size == taps * windows for size, taps, windows in sizes)
    ordinary = not geometry.is_adaptive and set(geometry.dilation) == {1} and not any(map(any, geometry.padding))
    return whole and ordinary and math.prod(geometry.out_spatial) >= _SPREAD_OUTPUTS


@lru_cache(maxsize=64)
def _spread(geometry: PoolGeometry) -> ResampleGeometry:
    """From each window to all its inputs."""
    return interpolation("avg_pool", (1, 1, *geometry.out_spatial), geometry.spatial, None, "nearest")


def _over_windows(loop: Loop, arguments: tuple[Any, ...], plan: WindowPlan, x: Array) -> None:
    planes = x.shape[0] * x.shape[1]
    cost = planes * plan.outputs * plan.taps * _NS_PER_WINDOW_TAP + x.nbytes * _NS_PER_BYTE
    share(loop, arguments, planes * plan.tasks, cost)


def _over_planes(loop: Loop, arguments: tuple[Any, ...], table: Table, x: Array) -> None:
    groups = -(-x.shape[0] * x.shape[1] // lanes_of(x.itemsize))
    team = team_for(groups, groups * table.cost)
    memory = scratch_rows(team.size, table.scratch, x.dtype)
    loop(*arguments, table.places, table.sizes, memory, team.address, 0, groups)


def _over_rows(loop: Loop, arguments: tuple[Any, ...], plan: RowPlan, x: Array) -> None:
    planes = x.shape[0] * x.shape[1]
    tasks = planes * plan.tasks
    cost = planes * plan.outputs * plan.taps * _NS_PER_TAP + tasks * _NS_PER_ROW
    share(loop, arguments, tasks, cost)
