"""Pooling by irregular windows, row by row: what the kernels of max_pool.py and avg_pool.py are told, and share.

Every rank is lifted to three axes, and every kind of window (strided, dilated, padded, adaptive) to the same tables:
for each output of an axis its first tap and its end inside the input. Axes that a window covers completely are merged,
so that global pooling is one long run. The rows of a window are merged first, by vectors of columns, for all outputs of
a row together; from what they leave the outputs are computed one by one, a long window by vectors. In the gradient of
an average the columns of a row whose windows are complete and equally spaced, its interior, go tap by tap together.
Cost: an operation for each input of a row of windows, and a nanosecond for each column of an output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.host import routine
from fastconv.backends.cpu.pool_windows import axis_divisors
from fastconv.geometry import PoolGeometry

Array = npt.NDArray[Any]

COLUMNS = 1024
"""Outputs of a row that are computed together at most; what they need stays in the first-level cache."""

LONG_WINDOW = 16
"""Neighbouring taps from which on a window is worth vectors of its own."""

_MIN_INTERIOR = 8  # fewer columns do not pay for the loop over taps
_MAX_INTERIOR_STRIDE = 8  # with larger ones every tap is a cache line of its own


@dataclass(frozen=True, eq=False)
class RowPlan:
    """Windows of a geometry as the kernels take them, three axes each."""

    windows: tuple[Array, Array, Array]  # of each axis: int64 (2, outputs), first taps and ends
    divisors: tuple[Array, Array, Array]  # of each axis: float64 (outputs,)
    sizes: tuple[int, int, int]
    steps: tuple[int, int, int]
    spans: Array  # int64 (blocks of columns, 2): the columns that their outputs read, first and end
    interior: tuple[int, int, int]  # first column, end, distance of the windows
    taps: int

    @cached_property
    def outputs(self) -> int:
        """Of a plane."""
        depth, height, width = self.windows
        return len(depth[0]) * len(height[0]) * len(width[0])

    @cached_property
    def tasks(self) -> int:
        """Of a plane: rows of outputs, cut into blocks of columns."""
        depth, height, width = self.windows
        return len(depth[0]) * len(height[0]) * -(-len(width[0]) // COLUMNS)


@lru_cache(maxsize=64)
def row_plan(geometry: PoolGeometry) -> RowPlan:
    """The plan of a geometry; few are kept, as those of a long 1-D input hold a number for every output."""
    kernel, stride, sizes = list(geometry.kernel), list(geometry.stride), list(geometry.spatial)
    windows = [(np.array(table[:2], np.int64), table[2]) for table in geometry.windows()]
    divisors = axis_divisors(geometry)
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
    starts, stops = lifted[-1][0]
    blocks = range(0, len(starts), COLUMNS)
    return RowPlan(
        windows=tables,
        divisors=(np.ones(1),) * missing + tuple(divisors),  # type: ignore[arg-type]
        sizes=(1,) * missing + tuple(sizes),  # type: ignore[arg-type]
        steps=steps,
        spans=np.array([(starts[b : b + COLUMNS].min(), stops[b : b + COLUMNS].max()) for b in blocks], np.int64),
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


@routine
def locate(task: int, depth: Any, height: Any, width: Any) -> tuple[int, int, int, int, int]:
    """Plane, depth and height index of a task's row, first column and end."""
    columns = width.shape[1]
    blocks = (columns + COLUMNS - 1) // COLUMNS
    row, first = task // blocks, task % blocks * COLUMNS
    h = row % height.shape[1]
    row = row // height.shape[1]
    return row // depth.shape[1], row % depth.shape[1], h, first, min(first + COLUMNS, columns)


@routine
def is_one_row(depth: Any, height: Any, od: int, oh: int, steps: Any) -> bool:
    """Whether the windows of a row of outputs are one row of inputs."""
    one: bool = depth[0, od] + steps[0] >= depth[1, od] and height[0, oh] + steps[1] >= height[1, oh]
    return one


@routine
def widest(spans: Any) -> int:
    """Columns of the longest span."""
    most = 0
    for b in range(len(spans)):
        most = max(most, spans[b, 1] - spans[b, 0])
    return most
