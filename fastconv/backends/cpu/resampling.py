"""Resampling on the CPU: the order of the axes and the blocks, once for each geometry. See contract.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import resample_passes
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import flat, past_caches
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.plane_lanes import fills_lanes, places_of
from fastconv.backends.cpu.resample_simd import REGULAR_TAPS
from fastconv.backends.cpu.scratch import ALIGNED, scratch_rows
from fastconv.backends.threads import team_for
from fastconv.geometry.resampling import ResampleGeometry, Taps

Array = npt.NDArray[Any]

_BLOCK = 1 << 16
"""Elements of the largest array of a block, about: all of them stay in the second-level cache."""

_CHUNK = 512
"""Columns of rows that are turned, read and written, about."""

_SPARSE = 16
"""From so many inputs for each tap on, rows are not turned."""

_SMALL, _WIDE = 4096, 1.75
"""Elements of the largest array, and vectors of a row, up to which planes are resampled in the lanes. Where a row goes
by regular groups, it need only be one vector long to be better."""

_NS_PER_ELEMENT = 0.3


def resample(x: Array, geometry: ResampleGeometry) -> Array:
    """See contract.Backend.resample."""
    plan = _plan(geometry, x.dtype)
    if not len(plan.passes):  # nothing but copies
        return x.copy()
    y = empty(x.shape[:2] + geometry.out_spatial, x.dtype)
    if plan.in_lanes is not None and fills_lanes(x):  # few planes go along rows, with the same bits
        passes, sizes, places = plan.in_lanes
        lanes = lanes_of(x.itemsize)
        groups = -(-x.shape[0] * x.shape[1] // lanes)
        team = team_for(groups, (x.size + y.size) * _NS_PER_ELEMENT)
        memory = scratch_rows(team.size, 2 * sizes[2] * lanes, x.dtype)
        tables = plan.table, plan.weights, passes, sizes, places
        resample_passes.resample_in_lanes(flat(x), y.reshape(-1), *tables, memory, team.address, 0, groups)
        return y
    streamed = past_caches(y.nbytes, x.nbytes)
    arguments = flat(x), y.reshape(-1), plan.table, plan.weights, plan.passes, plan.block, streamed
    tasks = -(-x.shape[0] * x.shape[1] // plan.block[0]) * plan.block[2]
    team = team_for(tasks, (x.size + y.size) * _NS_PER_ELEMENT)
    memory = scratch_rows(team.size, plan.scratch, x.dtype)
    resample_passes.resample(*arguments, memory, team.address, 0, tasks)
    return y


@dataclass(frozen=True, eq=False)
class Plan:
    """A geometry as the kernel takes it: its axes without those of size 1. The first of them, the lead, may be cut."""

    table: Array
    """int64 (outputs of all axes, 3): first tap, taps, first weight."""
    weights: Array
    passes: Array
    """int64 (axes to resample, 11), in their order: where an axis begins in `table` (0: it is the lead), its inputs and
    outputs, elements behind it, images between the lead and it, whether the lead has been resampled, where in scratch
    the result lies (-1: it is y), columns that are turned together (0: none), and `_regular`.
    """
    block: tuple[int, ...]
    """Planes of a block, its outputs along the lead, blocks along the lead; inputs and outputs of the lead, elements
    behind it in x and in y; scratch between the axes; columns that are turned together and those that they read.
    """
    scratch: int
    """Elements of scratch of a thread."""
    in_lanes: tuple[Array, tuple[int, int, int], Array] | None
    """Passes, sizes and places for `resample_in_lanes`, where planes are that small."""


@lru_cache(maxsize=64)
def _plan(geometry: ResampleGeometry, dtype: np.dtype[Any]) -> Plan:
    axes = [axis for axis in geometry.axes if (axis.inputs, axis.outputs) != (1, 1)] or list(geometry.axes[:1])
    order, lead = _order(axes), axes[0]
    stages = [_sizes(axes, order[:done]) for done in range(len(order) + 1)]
    planes, rows = _block(stages, lead.outputs, lanes_of(dtype.itemsize))
    longest = _longest_run(lead, rows) if rows < lead.outputs else lead.inputs
    begins = np.cumsum([0, *(axis.outputs for axis in axes)])
    passes, kept, chunks, spans = [], 0, [0], [0]
    for i, before, after in zip(order, stages, stages[1:]):
        inner, lead_is_done = math.prod(before[i + 1 :]), 0 in order[: order.index(i)]
        chunks.append(_chunk(axes[i]) if inner == 1 else 0)
        spans.append(_longest_run(axes[i], chunks[-1]) if chunks[-1] else 0)
        sizes = int(begins[i]), axes[i].inputs, axes[i].outputs, inner, math.prod(before[1:i])
        passes.append((*sizes, lead_is_done, kept if i != order[-1] else -1, chunks[-1], *_regular(axes[i])))
        if i != order[-1]:
            kept += planes * (rows if lead_is_done or i == 0 else longest) * math.prod(after[1:])
    behind = math.prod(stages[0][1:]), math.prod(stages[-1][1:])
    cuts = -(-lead.outputs // rows)
    kept = -(-kept // ALIGNED) * ALIGNED
    block = planes, rows, cuts, lead.inputs, lead.outputs, *behind, kept, max(chunks), max(spans)
    scratch = kept + (max(chunks) + max(spans)) * lanes_of(dtype.itemsize)
    weights = np.concatenate([axis.weights for axis in axes]).astype(dtype)
    in_lanes = _in_lanes(stages, axes, order, begins, dtype.itemsize)
    return Plan(_table(axes), weights, np.array(passes, np.int64), block, scratch, in_lanes)


def _in_lanes(
    stages: list[list[int]], axes: list[Taps], order: list[int], begins: Array, itemsize: int
) -> tuple[Array, tuple[int, int, int], Array] | None:
    """See `Plan.in_lanes`; a pass: where its axis begins in the table, inputs, outputs, elements behind it, images."""
    volumes, lanes = [math.prod(stage) for stage in stages], lanes_of(itemsize)
    ends = stages[0][-1], stages[-1][-1]
    rows = max(ends) >= lanes if _is_regular(axes[-1]) else min(ends) >= _WIDE * lanes
    if max(volumes) > _SMALL or rows:
        return None
    passes = [
        (begins[i], axes[i].inputs, axes[i].outputs, math.prod(before[i + 1 :]), math.prod(before[:i]))
        for i, before in zip(order, stages)
    ]
    most = -(-max(*volumes, lanes) // ALIGNED) * ALIGNED
    return np.array(passes, np.int64), (volumes[0], volumes[-1], most), places_of(volumes[0], itemsize)


def _table(axes: list[Taps]) -> Array:
    before = np.cumsum([0, *(len(axis.weights) for axis in axes)])
    parts = [(axis.first, np.diff(axis.offsets), axis.offsets[:-1] + begin) for axis, begin in zip(axes, before)]
    return np.concatenate([np.stack(columns, 1) for columns in parts])


def _order(axes: list[Taps]) -> list[int]:
    """Those that shrink the most first; of equal ones the last axis where they grow, since its passes cost the most."""

    def growth(i: int) -> tuple[float, int]:
        grows = axes[i].outputs / axes[i].inputs
        return grows, i if grows < 1 else -i

    return sorted((i for i, axis in enumerate(axes) if not axis.is_identity), key=growth)


def _sizes(axes: list[Taps], done: list[int]) -> list[int]:
    """Of all axes when those in `done` have been resampled."""
    return [axis.outputs if i in done else axis.inputs for i, axis in enumerate(axes)]


def _block(stages: list[list[int]], outputs: int, lanes: int) -> tuple[int, int]:
    """Planes of a block and its outputs along the lead: several whole planes, or a part of one.

    Rows are best turned in full groups of `lanes`: of as many planes if these are rows, else of one plane.
    """
    largest = max(map(math.prod, stages))
    together = lanes if len(stages[0]) == 1 else 1
    if largest * together <= _BLOCK:
        return _BLOCK // largest // together * together, outputs
    least = 1
    if len(stages[0]) == 2:
        least = 2 * lanes * max(1, -(-outputs // stages[0][0]))
    return together, min(outputs, max(least, _BLOCK * outputs // (largest * together)))


def _chunk(axis: Taps) -> int:
    """Outputs of rows that are computed together; 0 where they weigh so few inputs that turning all would not pay."""
    if axis.inputs > _SPARSE * len(axis.weights):
        return 0
    return min(axis.outputs, max(1, _CHUNK * axis.outputs // (axis.inputs + axis.outputs)))


def _regular(axis: Taps) -> tuple[int, int, int]:
    """How many outputs of a doubled or halved axis, two or one, weigh as those before them, an input or two further;
    the first of these outputs, and how many such groups there are. Few, if any, where an axis is neither.
    """
    together = 2 if axis.outputs > axis.inputs else 1
    counts = np.diff(axis.offsets)
    taps = counts[len(counts) // 2]
    if taps not in REGULAR_TAPS[together]:
        return together, 0, 0
    usual = counts == taps
    weights = axis.weights[np.where(usual, axis.offsets[:-1], 0)[:, None] + np.arange(taps)]
    same = (axis.first[together:] - axis.first[:-together] == 3 - together) & usual[together:] & usual[:-together]
    same &= (weights[together:] == weights[:-together]).all(1)
    first = int(same.argmax()) if same.any() else 0
    length = int(np.append(same[first:], False).argmin())
    return together, first, (length + together) // together if length else 0


def _is_regular(axis: Taps) -> bool:
    """Whether all outputs of an axis are in such groups: then its rows are joined to one."""
    together, _, groups = _regular(axis)
    return together * groups == axis.outputs and (3 - together) * groups == axis.inputs


def _longest_run(axis: Taps, outputs: int) -> int:
    """The most inputs that so many neighbouring outputs weigh."""
    last = np.minimum(np.arange(axis.outputs) + outputs, axis.outputs) - 1
    return int((axis.ends[last] - axis.first).max())
