"""Pooling primitives of the CPU backend, small planes through tables, large ones by rows. See contract.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import avg_pool, max_pool, pool_gather
from fastconv.backends.cpu.pool_gather import Table
from fastconv.backends.cpu.pool_rows import RowPlan, row_plan
from fastconv.backends.cpu.threads import parallel_for
from fastconv.geometry import PoolGeometry

Array = npt.NDArray[Any]
Loop = Callable[..., None]

_NS_PER_TAP = 0.4
_NS_PER_ROW = 20.0
_NS_PER_BYTE = 0.05


def max_pool_forward(x: Array, geometry: PoolGeometry, with_indices: bool = True) -> tuple[Array, Array | None]:
    """See contract.Backend.max_pool_forward."""
    y = np.empty(x.shape[:2] + geometry.out_spatial, x.dtype)
    indices = np.empty(y.shape, np.int64) if with_indices else None
    flat = (x.reshape(-1), y.reshape(-1)) + (() if indices is None else (indices.reshape(-1),))
    table = pool_gather.max_table(geometry)
    if table is not None:
        _over_blocks(pool_gather.largest if indices is None else pool_gather.largest_and_indices, flat, table, y)
    else:
        plan = row_plan(geometry)
        arguments = (*flat, *plan.windows, plan.sizes, plan.steps, plan.interior)
        _over_rows(max_pool.values if indices is None else max_pool.values_and_indices, arguments, plan, x)
    return y, indices


def max_pool_backward(gy: Array, indices: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.max_pool_backward."""
    gx = np.empty(gy.shape[:2] + geometry.spatial, gy.dtype)
    flat_gy, flat_indices, flat_gx = gy.reshape(-1), indices.reshape(-1), gx.reshape(-1)
    outputs, inputs = math.prod(geometry.out_spatial), math.prod(geometry.spatial)
    parallel_for(
        lambda start, stop: max_pool.gradient(flat_gy, flat_indices, flat_gx, outputs, inputs, start, stop),
        gy.shape[0] * gy.shape[1],
        gy.size * 1.5 + gx.nbytes * _NS_PER_BYTE,
    )
    return gx


def avg_pool_forward(x: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.avg_pool_forward."""
    y = np.empty(x.shape[:2] + geometry.out_spatial, x.dtype)
    flat = (x.reshape(-1), y.reshape(-1))
    table = pool_gather.sum_table(geometry)
    if table is not None:
        _over_blocks(pool_gather.averages, flat, table, y, pool_gather.block_divisors(geometry, table.planes))
    else:
        plan = row_plan(geometry)
        arguments = (*flat, *plan.windows, *plan.divisors, plan.sizes, plan.steps, plan.interior)
        _over_rows(avg_pool.averages, arguments, plan, x)
    return y


def avg_pool_backward(gy: Array, geometry: PoolGeometry) -> Array:
    """See contract.Backend.avg_pool_backward."""
    gx = np.empty(gy.shape[:2] + geometry.spatial, gy.dtype)
    flat_gy, flat_gx = gy.reshape(-1), gx.reshape(-1)
    table = pool_gather.spread_table(geometry)
    if table is not None:
        divisors = pool_gather.block_divisors(geometry, table.planes)
        _over_blocks(pool_gather.spread, (flat_gy, flat_gx), table, gx, divisors)
        return gx
    plan = row_plan(geometry)
    arguments = (*plan.windows, *plan.divisors, plan.sizes, plan.steps, plan.interior)
    parallel_for(
        lambda start, stop: avg_pool.gradient(flat_gy, flat_gx, *arguments, start, stop),
        gy.shape[0] * gy.shape[1],
        gy.size * plan.taps * _NS_PER_TAP + gx.nbytes * _NS_PER_BYTE,
    )
    return gx


def _over_blocks(loop: Loop, flat: tuple[Array, ...], table: Table, result: Array, *divisors: Array) -> None:
    arguments = (*flat, table.places, table.shape, *divisors)
    tasks = -(-result.shape[0] * result.shape[1] // table.planes)
    parallel_for(lambda start, stop: loop(*arguments, start, stop), tasks, result.size * table.shape[0] * _NS_PER_TAP)


def _over_rows(loop: Loop, arguments: tuple[Any, ...], plan: RowPlan, x: Array) -> None:
    planes = x.shape[0] * x.shape[1]
    tasks = planes * plan.tasks
    cost = planes * plan.outputs * plan.taps * _NS_PER_TAP + tasks * _NS_PER_ROW
    parallel_for(lambda start, stop: loop(*arguments, start, stop), tasks, cost)
