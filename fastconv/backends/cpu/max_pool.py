"""Max pooling: values, values with the places of the winners, and the gradient of both.

Regular windows go by vectors of outputs (pool_windows.py). The others, adaptive ones and those of short rows with many
taps, are computed output by output along the rows of pool_rows.py. Cost: about 0.1 ns for each tap of an output with
its index where vectors serve (float32, AVX2), 1 to 2 ns elsewhere, and 12 bytes of memory traffic an output.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.elementary import maximum
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, VECTOR_BYTES, inlined, pointer, routine
from fastconv.backends.cpu.pool_rows import LONG_WINDOW, locate
from fastconv.backends.cpu.pool_simd import largest
from fastconv.backends.cpu.pool_windows import (
    DILATION,
    KERNEL,
    OUT,
    SIZE,
    STRIDE,
    block_of,
    first_output,
    first_tap,
    list_taps,
    next_vectors,
    open_block,
    scratch_size,
)
from fastconv.backends.cpu.simd import prefetch
from fastconv.backends.cpu.team import shared


@shared(allocates=True)  # type: ignore[untyped-decorator]
def windows(x: Any, y: Any, indices: Any, axes: Any, block: Any, firsts: Any, who: int, begin: int, end: int) -> None:
    """Blocks [begin, end) of y and, unless that is None, of indices."""
    stride, across = axes[STRIDE, 2], axes[OUT, 0] + axes[OUT, 1]
    volume, far = axes[SIZE, 0] * axes[SIZE, 1] * axes[SIZE, 2], x.size * x.itemsize > SECOND_LEVEL_BYTES
    taps = axes[KERNEL, 0] * axes[KERNEL, 1] * axes[KERNEL, 2]
    scratch = np.empty(scratch_size(axes, block), x.dtype)
    offsets, places = np.empty(taps, np.int64), np.empty(taps, np.int64)
    list_taps(places, axes[DILATION, 0] * axes[SIZE, 1] * axes[SIZE, 2], axes[SIZE, 2], axes)
    last = min(first_output(block_of(end, axes, block), axes), y.size)
    for task in range(begin, end):
        place = block_of(task, axes, block)
        plane, depth, row, row_end, column, column_end = place
        source, pitch = open_block(x, -np.inf, scratch, offsets, axes, block, place)
        to = first_output(place, axes)
        for h in range(row, row_end):
            first = firsts[depth] + firsts[axes[OUT, 0] + h]
            _row(
                x, indices, source, stride, pointer(offsets, 0), taps, pointer(y, to), pointer(places, 0),
                pointer(firsts, across + column), first, first_tap(depth, h, column, axes),
                0 if indices is None else pointer(indices, to), column_end - column, last - to,
            )  # fmt: skip
            if far:
                next_tap = plane * volume + first_tap(depth, h + block[0], column, axes)
                _fetch(x, next_tap, axes[STRIDE, 1], axes[SIZE, 2], (column_end - column) * stride)
            to += axes[OUT, 2]
            source += axes[STRIDE, 1] * pitch * x.itemsize


@routine
def _fetch(x: Any, first: int, rows: int, pitch: int, columns: int) -> None:
    """Ask for what the next block reads first, from element `first` on: memory would rest while this one computes."""
    for row in range(rows):
        begin = pointer(x, first + row * pitch)
        for at in range(0, columns * x.itemsize, 64):
            prefetch(x, begin + at)


@inlined
def _row(
    x: Any, indices: Any, source: int, stride: int, offsets: int, taps: int, y: int, places: int, firsts: int,
    first: int, base: int, found: int, columns: int, room: int,
) -> None:  # fmt: skip
    """A row of outputs of a block; arguments as those of `largest` and `next_vectors`."""
    lanes, c = VECTOR_BYTES // x.itemsize, 0
    while c < columns:
        c, vectors = next_vectors(c, columns, room, stride, lanes)
        at, to = source + c * stride * x.itemsize, y + c * x.itemsize
        f, b, i = firsts + 8 * c, base + c * stride, found + 8 * c
        if vectors == 0:
            largest(x, indices, 0, 0, at, stride, offsets, taps, to, places, f, first, b, i)
        elif stride == 1:
            if vectors == 2:
                largest(x, indices, 1, 2, at, stride, offsets, taps, to, places, f, first, b, i)
            else:
                largest(x, indices, 1, 1, at, stride, offsets, taps, to, places, f, first, b, i)
        elif stride == 2:
            if vectors == 2:
                largest(x, indices, 2, 2, at, stride, offsets, taps, to, places, f, first, b, i)
            else:
                largest(x, indices, 2, 1, at, stride, offsets, taps, to, places, f, first, b, i)
        else:
            largest(x, indices, 0, 1, at, stride, offsets, taps, to, places, f, first, b, i)
        c += max(vectors * lanes, 1)


@shared
def rows(
    x: Any, y: Any, indices: Any, depth: Any, height: Any, width: Any, sizes: Any, steps: Any, who: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    """Rows [begin, end) of y and, unless that is None, of indices."""
    for task in range(begin, end):
        plane, od, oh, first, last = locate(task, depth, height, width)
        source = x[plane * sizes[0] * sizes[1] * sizes[2] : (plane + 1) * sizes[0] * sizes[1] * sizes[2]]
        out = ((plane * depth.shape[1] + od) * height.shape[1] + oh) * width.shape[1]
        d0, d1, h0, h1 = depth[0, od], depth[1, od], height[0, oh], height[1, oh]
        for o in range(first, last):
            w0, w1 = width[0, o], width[1, o]
            index = (d0 * sizes[1] + h0) * sizes[2] + w0
            value = source[index]
            for d in range(d0, d1, steps[0]):
                for h in range(h0, h1, steps[1]):
                    row = (d * sizes[1] + h) * sizes[2]
                    if indices is None:
                        value = _largest(value, source, row + w0, row + w1, steps[2])
                        continue
                    for w in range(row + w0, row + w1, steps[2]):
                        wins = (source[w] > value) | (source[w] != source[w])
                        value = source[w] if wins else value
                        index = w if wins else index
            y[out + o] = value
            if indices is not None:
                indices[out + o] = index


@routine
def _largest(best: Any, x: Any, begin: int, end: int, step: int) -> Any:
    if step == 1 and end - begin >= LONG_WINDOW:
        run = x[begin:end]
        for i in range(run.size):
            best = maximum(best, run[i])
    else:
        for w in range(begin, end, step):
            best = maximum(best, x[w])
    return best


@shared
def gradient(
    gy: Any, indices: Any, gx: Any, bands: Any, outputs: int, inputs: int, who: int, begin: int, end: int
) -> None:
    """Bands [begin, end) of the planes of gx: each is owned by one task, which adds the outputs in their order.

    A row of `bands` has the first element of a band and its end, and the first and last output that may reach it.
    """
    count = len(bands)
    for task in range(begin, end):
        plane = task // count
        low, high, first, last = bands[task % count]
        target = gx[plane * inputs + low : plane * inputs + high]
        target[:] = 0.0
        for i in range(plane * outputs + first, plane * outputs + last):
            place = indices[i] - low
            if 0 <= place < target.size:
                target[place] += gy[i]
