"""Pooling by regular windows: what the vector loops of max_pool.py and avg_pool.py work on.

Every rank is lifted to three axes. A task is a block: some rows of outputs of one plane at one depth. Where all windows
of a block lie inside the input they are read where they are; otherwise the rows they read are first copied to scratch
with padding around them, so that no loop over taps has borders. Either way an output reads its taps at the same offsets
from its first one, and a row of outputs is computed by whole vectors (pool_simd.py), the last one overlapping the one
before. Rows shorter than a vector write over their end; the next row then writes what belongs there.
Cost: a load and an add, or five operations of a maximum with its index, for each tap of a vector of outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import inlined, pointer, routine
from fastconv.geometry import PoolGeometry

Array = npt.NDArray[Any]

SIZE, KERNEL, STRIDE, DILATION, BEFORE, OUT = range(6)
"""Rows of `WindowPlan.axes`."""

_OUTPUTS = 2048
"""Of a block, about: what it reads and writes then stays in the second-level cache."""

_COLUMNS = 1024
"""Outputs of a row in a block."""

_SPARE = 16
"""Entries behind the tables of a row: a last vector reads over its end."""


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """The windows of a geometry as the kernels take them."""

    axes: Array  # int64 (6, 3)
    block: tuple[int, int]  # rows and columns
    firsts: Array  # int64: for the outputs of each axis how far behind its first tap the first one inside lies
    divisors: Array  # float64, for the outputs of each axis; for float32 results their inverses, see `averages`

    @cached_property
    def taps(self) -> int:
        return int(math.prod(self.axes[KERNEL]))

    @cached_property
    def outputs(self) -> int:
        """Of a plane."""
        return int(math.prod(self.axes[OUT]))

    @cached_property
    def tasks(self) -> int:
        """Of a plane."""
        depth, height, width = self.axes[OUT].tolist()
        return int(depth * -(-height // self.block[0]) * -(-width // self.block[1]))


@lru_cache(maxsize=64)
def window_plan(geometry: PoolGeometry, itemsize: int) -> WindowPlan | None:
    """The plan of a geometry, None where windows are irregular or rows shorter than half a vector."""
    width = geometry.out_spatial[-1]
    if geometry.is_adaptive or width < max(2, lanes_of(itemsize) // 2) or math.prod(geometry.spatial) >= 2**31:
        return None
    missing = 3 - geometry.rank
    before = tuple(sides[0] for sides in geometry.padding)
    axes = np.array(
        [
            (1,) * missing + geometry.spatial,
            (1,) * missing + geometry.kernel,
            (1,) * missing + geometry.stride,
            (1,) * missing + geometry.dilation,
            (0,) * missing + before,
            (1,) * missing + geometry.out_spatial,
        ],
        np.int64,
    )
    columns = -(-width // -(-width // _COLUMNS))
    rows = max(1, _OUTPUTS // width)
    firsts, divisors = [np.zeros(1, np.int64)] * missing, [np.ones(1)] * missing + axis_divisors(geometry)
    for axis, (starts, _, _) in enumerate(geometry.windows()):
        outputs = np.arange(geometry.out_spatial[axis])
        skipped = np.array(starts) - (outputs * geometry.stride[axis] - before[axis])
        firsts.append(skipped * math.prod(geometry.spatial[axis + 1 :]))
    firsts.append(np.zeros(_SPARE, np.int64))
    divisors.append(np.ones(_SPARE))
    product = np.concatenate(divisors)
    return WindowPlan(axes, (rows, columns), np.concatenate(firsts), 1 / product if itemsize == 4 else product)


def axis_divisors(geometry: PoolGeometry) -> list[Array]:
    """For each axis its part of what the outputs are divided by, float64."""
    counts = geometry.divisors()
    if counts is not None:
        return [np.array(count, np.float64) for count in counts]
    first, *others = geometry.out_spatial
    return [np.full(first, float(geometry.divisor_override or 1)), *(np.ones(size) for size in others)]


@routine
def block_of(task: int, axes: Any, block: Any) -> tuple[int, int, int, int, int, int]:
    """Plane, depth, first row and end, first column and end of a task; its last outputs precede the next task's."""
    rows, columns = block
    height, width = axes[OUT, 1], axes[OUT, 2]
    down, across = (height + rows - 1) // rows, (width + columns - 1) // columns
    column = task % across * columns
    task = task // across
    row = task % down * rows
    task = task // down
    depth = axes[OUT, 0]
    return task // depth, task % depth, row, min(row + rows, height), column, min(column + columns, width)


@inlined
def first_output(place: tuple[int, int, int, int, int, int], axes: Any) -> int:
    """Where the outputs of a block begin."""
    plane, depth, row, _, column, _ = place
    first: int = ((plane * axes[OUT, 0] + depth) * axes[OUT, 1] + row) * axes[OUT, 2] + column
    return first


@inlined
def first_tap(depth: int, row: int, column: int, axes: Any) -> int:
    """Where in its plane the first tap of an output lies; it may be padding."""
    d = depth * axes[STRIDE, 0] - axes[BEFORE, 0]
    h = row * axes[STRIDE, 1] - axes[BEFORE, 1]
    w = column * axes[STRIDE, 2] - axes[BEFORE, 2]
    tap: int = (d * axes[SIZE, 1] + h) * axes[SIZE, 2] + w
    return tap


@inlined
def next_vectors(column: int, columns: int, room: int, stride: int, lanes: int) -> tuple[int, int]:
    """The column to go on from and how many vectors to compute there (0: a single output) of a row of `columns`.

    `room` outputs are the task's own from the row's first one on: only there may a short row write over its end.
    """
    left = columns - column
    if left >= 2 * lanes and stride <= 2:
        return column, 2
    if left >= lanes:
        return column, 1
    if columns >= lanes:
        return columns - lanes, 1
    return column, 1 if room >= 2 * lanes else 0


@routine
def scratch_size(axes: Any, block: Any) -> int:
    """Elements of a block's copy, with what its last vectors read over their end."""
    rows = (min(block[0], axes[OUT, 1]) - 1) * axes[STRIDE, 1] + (axes[KERNEL, 1] - 1) * axes[DILATION, 1] + 1
    size: int = axes[KERNEL, 0] * rows * _pitch(axes, block) + _SPARE * axes[STRIDE, 2]
    return size


@routine
def _pitch(axes: Any, block: Any) -> int:
    """Of a row of the copy."""
    pitch: int = (min(block[1], axes[OUT, 2]) - 1) * axes[STRIDE, 2] + (axes[KERNEL, 2] - 1) * axes[DILATION, 2] + 1
    return pitch


@routine
def list_taps(offsets: Any, depth_step: int, row_step: int, axes: Any) -> None:
    """Where each tap lies behind the first one, in an array of these steps."""
    t = 0
    for d in range(axes[KERNEL, 0]):
        for h in range(axes[KERNEL, 1]):
            for w in range(axes[KERNEL, 2]):
                offsets[t] = d * depth_step + h * axes[DILATION, 1] * row_step + w * axes[DILATION, 2]
                t += 1


@routine
def open_block(
    x: Any, fill: Any, scratch: Any, offsets: Any, axes: Any, block: Any, place: tuple[int, int, int, int, int, int]
) -> tuple[int, int]:
    """Address of the first tap of a block's first output, and the pitch of rows there; fills `offsets`."""
    plane, depth, row, row_end, column, column_end = place
    d0 = depth * axes[STRIDE, 0] - axes[BEFORE, 0]
    h0 = row * axes[STRIDE, 1] - axes[BEFORE, 1]
    w0 = column * axes[STRIDE, 2] - axes[BEFORE, 2]
    d1 = d0 + (axes[KERNEL, 0] - 1) * axes[DILATION, 0] + 1
    h1 = h0 + (row_end - row - 1) * axes[STRIDE, 1] + (axes[KERNEL, 1] - 1) * axes[DILATION, 1] + 1
    w1 = w0 + (column_end - column - 1) * axes[STRIDE, 2] + (axes[KERNEL, 2] - 1) * axes[DILATION, 2] + 1
    depths, height, width = axes[SIZE, 0], axes[SIZE, 1], axes[SIZE, 2]
    first = plane * depths * height * width
    if min(d0, h0, w0) >= 0 and d1 <= depths and h1 <= height and w1 <= width:
        list_taps(offsets, axes[DILATION, 0] * height * width, width, axes)
        return pointer(x, first + (d0 * height + h0) * width + w0), width
    pitch, to = _pitch(axes, block), 0
    left, right = max(0, -w0), min(w1, width) - w0
    for d in range(d0, d1, axes[DILATION, 0]):
        for h in range(h0, h1):
            target = scratch[to : to + pitch]
            to += pitch
            for i in range(target.size):
                target[i] = fill
            if 0 <= d < depths and 0 <= h < height:
                begin = first + (d * height + h) * width + w0
                inner, source = target[left:right], x[begin + left : begin + right]
                for i in range(source.size):  # `inner[:] = source` compiles for a second: it could raise, with a text
                    inner[i] = source[i]
    list_taps(offsets, (h1 - h0) * pitch, pitch, axes)
    return pointer(scratch, 0), pitch
