"""Average pooling: window sums over divisors, and their adjoint.

Sums are float64. Regular windows go by vectors of outputs (pool_windows.py); the others, adaptive ones and those of
short rows with many taps, along the rows of pool_rows.py, whose windows are merged row by row first. The gradient of
windows with a step of 1 is an average over the outputs that read an input, by the same kernel. Others spread
gy / divisor over the taps of each window; a plane belongs to one task, so the order of the sums is that of the outputs.
Cost: one add for each tap of an output; dividing is hidden behind memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu import sums
from fastconv.backends.cpu.host import VECTOR_BYTES, inlined, pointer, routine
from fastconv.backends.cpu.pool_rows import COLUMNS, LONG_WINDOW, is_one_row, locate, widest
from fastconv.backends.cpu.pool_simd import averages
from fastconv.backends.cpu.pool_windows import (
    KERNEL,
    OUT,
    STRIDE,
    block_of,
    first_output,
    next_vectors,
    open_block,
    scratch_size,
)
from fastconv.backends.cpu.team import shared


@shared(allocates=True)  # type: ignore[untyped-decorator]
def windows(x: Any, y: Any, axes: Any, block: Any, divisors: Any, who: int, begin: int, end: int) -> None:
    """Blocks [begin, end) of y."""
    stride, across = axes[STRIDE, 2], axes[OUT, 0] + axes[OUT, 1]
    scratch = np.empty(scratch_size(axes, block), x.dtype)
    offsets = np.empty(axes[KERNEL, 0] * axes[KERNEL, 1] * axes[KERNEL, 2], np.int64)
    last = min(first_output(block_of(end, axes, block), axes), y.size)
    for task in range(begin, end):
        place = block_of(task, axes, block)
        _, depth, row, row_end, column, column_end = place
        source, pitch = open_block(x, 0.0, scratch, offsets, axes, block, place)
        to = first_output(place, axes)
        for h in range(row, row_end):
            factor = divisors[depth] * divisors[axes[OUT, 0] + h]
            _row(
                x, source, stride, pointer(offsets, 0), offsets.size, pointer(y, to),
                pointer(divisors, across + column), factor, column_end - column, last - to,
            )  # fmt: skip
            to += axes[OUT, 2]
            source += axes[STRIDE, 1] * pitch * x.itemsize


@shared
def whole_planes(x: Any, y: Any, plane: int, divisor: float, who: int, begin: int, end: int) -> None:
    """Outputs [begin, end), each of a window that is all of a plane."""
    for task in range(begin, end):
        y[task] = sums.total(x[task * plane : (task + 1) * plane]) / divisor


@inlined
def _row(
    x: Any, source: int, stride: int, offsets: int, taps: int, y: int, divisors: int, factor: float, columns: int,
    room: int,
) -> None:  # fmt: skip
    """A row of outputs of a block; arguments as those of `averages` and `next_vectors`."""
    lanes, c = VECTOR_BYTES // x.itemsize, 0
    while c < columns:
        c, vectors = next_vectors(c, columns, room, stride, lanes)
        at, to, d = source + c * stride * x.itemsize, y + c * x.itemsize, divisors + 8 * c
        if vectors == 0:
            averages(x, 0, 0, at, stride, offsets, taps, to, d, factor)
        elif stride == 1:
            if vectors == 2:
                averages(x, 1, 2, at, stride, offsets, taps, to, d, factor)
            else:
                averages(x, 1, 1, at, stride, offsets, taps, to, d, factor)
        elif stride == 2:
            if vectors == 2:
                averages(x, 2, 2, at, stride, offsets, taps, to, d, factor)
            else:
                averages(x, 2, 1, at, stride, offsets, taps, to, d, factor)
        else:
            averages(x, 0, 1, at, stride, offsets, taps, to, d, factor)
        c += max(vectors * lanes, 1)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def rows(
    x: Any, y: Any, depth: Any, height: Any, width: Any, depth_divisors: Any, height_divisors: Any,
    width_divisors: Any, sizes: Any, steps: Any, spans: Any, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Rows [begin, end) of y. `spans`: the columns that the outputs of a block read."""
    merged = np.empty(widest(spans))
    for task in range(begin, end):
        plane, od, oh, first, last = locate(task, depth, height, width)
        low, high = spans[first // COLUMNS]
        out = ((plane * depth.shape[1] + od) * height.shape[1] + oh) * width.shape[1]
        target, divisors = y[out + first : out + last], width_divisors[first:last]
        factor, taken = depth_divisors[od] * height_divisors[oh], width[:, first:last]
        alone = is_one_row(depth, height, od, oh, steps)
        for d in range(depth[0, od], depth[1, od], steps[0]):
            for h in range(height[0, oh], height[1, oh], steps[1]):
                row = ((plane * sizes[0] + d) * sizes[1] + h) * sizes[2]
                if alone:
                    _means(x[row + low : row + high], target, taken, low, steps[2], divisors, factor)
                elif d == depth[0, od] and h == height[0, oh]:
                    _copy(x[row + low : row + high], merged)
                else:
                    _add(x[row + low : row + high], merged)
        if not alone:
            _means(merged[: high - low], target, taken, low, steps[2], divisors, factor)


@routine
def _copy(row: Any, target: Any) -> None:
    for i in range(row.size):
        target[i] = row[i]


@routine
def _add(row: Any, target: Any) -> None:
    for i in range(row.size):
        target[i] += row[i]


@routine
def _means(row: Any, y: Any, taken: Any, low: int, step: int, divisors: Any, factor: float) -> None:
    """y from the sums over windows of a row, which begins with column `low`."""
    for o in range(y.size):
        begin, end, total = taken[0, o] - low, taken[1, o] - low, 0.0
        if step == 1 and end - begin >= LONG_WINDOW:
            total = sums.total(row[begin:end])
        else:
            for w in range(begin, end, step):
                total += row[w]
        y[o] = total / (divisors[o] * factor)


@routine
def _divide(total: Any, divisors: Any, factor: float, y: Any) -> None:
    for i in range(total.size):
        y[i] = total[i] / (divisors[i] * factor)


@shared
def gradient(
    gy: Any, gx: Any, depth: Any, height: Any, width: Any, depth_divisors: Any, height_divisors: Any,
    width_divisors: Any, sizes: Any, steps: Any, interior: Any, memory: Any, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Planes [begin, end) of gx. `memory`: for each thread a row of outputs and one of inputs.

    What a row of outputs adds to a row of inputs is the same for each row of its windows.
    """
    columns, volume = width.shape[1], sizes[0] * sizes[1] * sizes[2]
    rows = depth.shape[1] * height.shape[1]
    shares, spread = memory[who, :columns], memory[who, columns : columns + sizes[2]]
    for plane in range(begin, end):
        gx[plane * volume : (plane + 1) * volume] = 0.0
        for out in range(rows):
            od, oh = out // height.shape[1], out % height.shape[1]
            first = (plane * rows + out) * columns
            _divide(gy[first : first + columns], width_divisors, depth_divisors[od] * height_divisors[oh], shares)
            if volume == sizes[2]:
                _spread(shares, gx[plane * volume : (plane + 1) * volume], width, steps[2], interior)
                continue
            spread[:] = 0.0
            _spread(shares, spread, width, steps[2], interior)
            for d in range(depth[0, od], depth[1, od], steps[0]):
                for h in range(height[0, oh], height[1, oh], steps[1]):
                    row = plane * volume + (d * sizes[1] + h) * sizes[2]
                    _add(spread, gx[row : row + sizes[2]])


@routine
def _spread(shares: Any, target: Any, width: Any, step: int, interior: Any) -> None:
    """Add the share of each output of a row to its taps in one row of the input."""
    low, high, stride = interior
    for o in range(low):
        _add_to_taps(target, width[0, o], width[1, o], step, shares[o])
    if low < high:
        for w in range(width[0, low], width[1, low], step):
            _add_strided(target, w, stride, shares[low:high])
    for o in range(high, shares.size):
        _add_to_taps(target, width[0, o], width[1, o], step, shares[o])


@routine
def _add_to_taps(target: Any, begin: int, end: int, step: int, share: Any) -> None:
    if step == 1:
        run = target[begin:end]
        for i in range(run.size):
            run[i] += share
    else:
        for w in range(begin, end, step):
            target[w] += share


@routine
def _add_strided(target: Any, begin: int, stride: int, shares: Any) -> None:
    """target[begin + i · stride] += shares[i]."""
    if stride == 1:
        run = target[begin : begin + shares.size]
        for i in range(run.size):
            run[i] += shares[i]
    else:
        for i in range(np.uintp(shares.size)):
            target[np.uintp(begin) + i * np.uintp(stride)] += shares[i]
