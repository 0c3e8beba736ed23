"""Max pooling: values, values with the places of the winners, and the gradient of both.

Regular windows go by vectors of outputs (pool_windows.py). The others, adaptive ones and those of short rows with many
taps, go along the rows of pool_rows.py: the rows of a window are merged first, then come its columns, output by output.
Cost: about 0.1 ns for each tap of an output with its index where vectors serve (float32, AVX2), 1 to 2 ns elsewhere,
and 12 bytes of memory traffic an output.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.elementary import maximum
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, VECTOR_BYTES, inlined, pointer, routine
from fastconv.backends.cpu.pool_rows import COLUMNS, LONG_WINDOW, is_one_row, locate, widest
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


@shared(allocates=True)  # type: ignore[untyped-decorator]
def rows(
    x: Any, y: Any, indices: Any, depth: Any, height: Any, width: Any, sizes: Any, steps: Any, spans: Any, who: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Rows [begin, end) of y and, unless that is None, of indices. `spans`: the columns that a block's outputs read."""
    columns, lanes = widest(spans), 2 * VECTOR_BYTES // x.itemsize
    merged, maxima = np.empty(columns, x.dtype), np.empty(lanes, x.dtype)
    vectors = np.empty(1 + columns // lanes, np.int64)  # where they begin, for `_largest`
    for i in range(vectors.size):
        vectors[i] = i * lanes
    winners = np.empty(0 if indices is None else columns, np.int32)  # the row that each value comes from
    for task in range(begin, end):
        plane, od, oh, first, last = locate(task, depth, height, width)
        low, high = spans[first // COLUMNS]
        out = ((plane * depth.shape[1] + od) * height.shape[1] + oh) * width.shape[1]
        target, taken = y[out + first : out + last], width[:, first:last]
        best, number, alone = merged[: high - low], 0, is_one_row(depth, height, od, oh, steps)
        for d in range(depth[0, od], depth[1, od], steps[0]):
            for h in range(height[0, oh], height[1, oh], steps[1]):
                number = d * sizes[1] + h
                row = (plane * sizes[0] * sizes[1] + number) * sizes[2]
                if alone:
                    best = x[row + low : row + high]
                elif d == depth[0, od] and h == height[0, oh]:
                    _begin(x[row + low : row + high], number, best, indices, winners)
                else:
                    _compete(x[row + low : row + high], number, best, indices, winners)
        if indices is None:
            _largest_of(best, target, taken, low, steps[2], vectors, maxima)
        elif alone:
            found = indices[out + first : out + last]
            _places_in_a_row(best, target, found, taken, low, steps[2], number * sizes[2], vectors, maxima)
        else:
            _places(best, winners, target, indices[out + first : out + last], taken, low, steps[2], sizes[2])


@routine
def _begin(row: Any, number: int, best: Any, indices: Any, winners: Any) -> None:
    for i in range(row.size):
        best[i] = row[i]
    if indices is not None:
        winners[: row.size] = number


@routine
def _compete(row: Any, number: int, best: Any, indices: Any, winners: Any) -> None:
    """The larger of a row and what won before, the earlier of equal ones, the later of NaNs."""
    if indices is None:
        for i in range(row.size):
            best[i] = maximum(best[i], row[i])
        return
    winner = np.int32(number)
    for i in range(row.size):
        value, challenger, held = best[i], row[i], winners[i]  # loaded whoever wins, so that LLVM can vectorise
        wins = (challenger > value) | (challenger != challenger)
        best[i] = challenger if wins else value
        winners[i] = winner if wins else held


@routine
def _largest_of(row: Any, y: Any, taken: Any, low: int, step: int, vectors: Any, maxima: Any) -> None:
    """y from the windows of a row, which begins with column `low`."""
    for o in range(y.size):
        begin, end = taken[0, o] - low, taken[1, o] - low
        if step == 1 and end - begin >= LONG_WINDOW:
            y[o] = _largest(row[begin:end], vectors, maxima)
            continue
        value = row[begin]
        for w in range(begin + step, end, step):
            value = maximum(value, row[w])
        y[o] = value


@routine
def _places_in_a_row(
    row: Any, y: Any, indices: Any, taken: Any, low: int, step: int, place: int, vectors: Any, maxima: Any
) -> None:
    """The same with the places of the winners; column 0 of the row is `place`."""
    for o in range(y.size):
        begin, end = taken[0, o] - low, taken[1, o] - low
        value, winner = row[begin], begin
        if step == 1 and end - begin >= LONG_WINDOW:
            value = _largest(row[begin:end], vectors, maxima)
            if value != value:
                winner = end - 1
                while row[winner] == row[winner]:
                    winner -= 1
            else:
                while row[winner] != value:
                    winner += 1
        else:
            for w in range(begin, end, step):
                wins = (row[w] > value) | (row[w] != row[w])
                value = row[w] if wins else value
                winner = w if wins else winner
        y[o], indices[o] = value, place + low + winner


@routine
def _places(best: Any, winners: Any, y: Any, indices: Any, taken: Any, low: int, step: int, pitch: int) -> None:
    """The same where columns stand for winners of several rows: the earliest row of equal ones, the last of NaNs."""
    for o in range(y.size):
        begin, end = taken[0, o] - low, taken[1, o] - low
        value, winner, number = best[begin], begin, winners[begin]
        for w in range(begin + step, end, step):
            if best[w] != best[w]:
                wins = (value == value) | (winners[w] >= number)
            else:
                wins = (best[w] > value) | ((best[w] == value) & (winners[w] < number))
            value = best[w] if wins else value
            winner = w if wins else winner
            number = winners[w] if wins else number
        y[o], indices[o] = value, number * pitch + low + winner


@routine
def _largest(run: Any, vectors: Any, maxima: Any) -> Any:
    """The largest value, a NaN if there is one: every lane of two vectors has a maximum of its own.

    `vectors`: where pairs of vectors begin, enough of them for any run; `maxima`: memory of two.
    """
    best, lanes = run[0], 2 * VECTOR_BYTES // run.itemsize
    pairs = run.size // lanes
    if pairs > 0:
        largest(run, None, 1, 2, pointer(run, 0), 1, pointer(vectors, 0), pairs, pointer(maxima, 0), 0, 0, 0, 0, 0)
        for i in range(lanes):
            best = maximum(best, maxima[i])
    for i in range(pairs * lanes, run.size):
        best = maximum(best, run[i])
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
