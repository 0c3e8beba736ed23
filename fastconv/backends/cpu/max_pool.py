"""Max pooling by rows: values, values with the places of the winners, and the gradient of both kinds of planes.

Interior columns of a row keep their best value and its place in two buffers, to which one tap after the other is
compared: a vector compare and two blends for each tap. Places are 32-bit offsets from the first tap of the window, as
wide as a float32, and become 64-bit indices at the end of the row. Cost: 1 to 2 ns for each tap of an output with its
index (float32), half of that without, and 12 bytes of memory traffic an output.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.elementary import maximum
from fastconv.backends.cpu.host import kernel
from fastconv.backends.cpu.pool_rows import COLUMNS, LONG_WINDOW, clip, locate


@kernel
def values_and_indices(
    x: Any, y: Any, indices: Any, depth: Any, height: Any, width: Any, sizes: Any, steps: Any, interior: Any,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Rows [start, stop) of y and indices."""
    best, place = np.empty(COLUMNS, x.dtype), np.empty(COLUMNS, np.int32)
    for task in range(start, stop):
        plane, od, oh, first, last = locate(task, depth, height, width)
        source = x[plane * sizes[0] * sizes[1] * sizes[2] : (plane + 1) * sizes[0] * sizes[1] * sizes[2]]
        out = ((plane * depth.shape[1] + od) * height.shape[1] + oh) * width.shape[1]
        d0, d1, h0, h1 = depth[0, od], depth[1, od], height[0, oh], height[1, oh]
        low, high = clip(interior, first, last)
        o = first
        while o < last:
            if o == low and low < high:
                o = high
                continue
            w0, w1 = width[0, o], width[1, o]
            index = (d0 * sizes[1] + h0) * sizes[2] + w0
            value = source[index]
            for d in range(d0, d1, steps[0]):
                for h in range(h0, h1, steps[1]):
                    row = (d * sizes[1] + h) * sizes[2]
                    for w in range(row + w0, row + w1, steps[2]):
                        wins = (source[w] > value) | (source[w] != source[w])
                        value = source[w] if wins else value
                        index = w if wins else index
            y[out + o], indices[out + o] = value, index
            o += 1
        if low == high:
            continue
        count, left, stride = high - low, width[0, low], interior[2]
        best[:count] = -np.inf
        place[:count] = (d0 * sizes[1] + h0) * sizes[2]
        for d in range(d0, d1, steps[0]):
            for h in range(h0, h1, steps[1]):
                row = (d * sizes[1] + h) * sizes[2]
                for w in range(0, width[1, low] - left, steps[2]):
                    _challenge(best, place, source, row + left + w, stride, np.int32(row + w), count)
        for i in range(count):
            y[out + low + i] = best[i]
            indices[out + low + i] = place[i] + (left + i * stride)


@kernel
def _challenge(best: Any, place: Any, x: Any, begin: int, stride: int, offset: int, count: int) -> None:
    """best, place = the larger of them and x[begin + i · stride], offset for i < count; NaN is larger than all."""
    if stride == 1:
        challengers = x[begin : begin + count]
        for i in range(challengers.size):
            wins = (challengers[i] > best[i]) | (challengers[i] != challengers[i])
            best[i] = challengers[i] if wins else best[i]
            place[i] = offset if wins else place[i]
    elif stride == 2:
        # Unsigned, because an index that might be negative keeps a loop from vectorising.
        for i in range(np.uintp(count)):
            challenger = x[np.uintp(begin) + i * np.uintp(2)]
            wins = (challenger > best[i]) | (challenger != challenger)
            best[i] = challenger if wins else best[i]
            place[i] = offset if wins else place[i]
    else:
        for i in range(np.uintp(count)):
            challenger = x[np.uintp(begin) + i * np.uintp(stride)]
            wins = (challenger > best[i]) | (challenger != challenger)
            best[i] = challenger if wins else best[i]
            place[i] = offset if wins else place[i]


@kernel
def values(
    x: Any, y: Any, depth: Any, height: Any, width: Any, sizes: Any, steps: Any, interior: Any, start: int, stop: int
) -> None:
    """Rows [start, stop) of y alone."""
    for task in range(start, stop):
        plane, od, oh, first, last = locate(task, depth, height, width)
        base = plane * sizes[0] * sizes[1] * sizes[2]
        out = ((plane * depth.shape[1] + od) * height.shape[1] + oh) * width.shape[1]
        low, high = clip(interior, first, last)
        best = y[out + first : out + last]
        best[:] = -np.inf
        for d in range(depth[0, od], depth[1, od], steps[0]):
            for h in range(height[0, oh], height[1, oh], steps[1]):
                row = base + (d * sizes[1] + h) * sizes[2]
                for o in range(first, low):
                    best[o - first] = _largest(best[o - first], x, row + width[0, o], row + width[1, o], steps[2])
                for o in range(high, last):
                    best[o - first] = _largest(best[o - first], x, row + width[0, o], row + width[1, o], steps[2])
                if low < high:
                    for w in range(row + width[0, low], row + width[1, low], steps[2]):
                        _raise(best[low - first : high - first], x, w, interior[2])


@kernel
def _largest(best: Any, x: Any, begin: int, end: int, step: int) -> Any:
    if step == 1 and end - begin >= LONG_WINDOW:
        run = x[begin:end]
        for i in range(run.size):
            best = maximum(best, run[i])
    else:
        for w in range(begin, end, step):
            best = maximum(best, x[w])
    return best


@kernel
def _raise(best: Any, x: Any, begin: int, stride: int) -> None:
    """best[i] = max(best[i], x[begin + i · stride])."""
    if stride == 1:
        challengers = x[begin : begin + best.size]
        for i in range(challengers.size):
            best[i] = maximum(best[i], challengers[i])
    elif stride == 2:
        for i in range(np.uintp(best.size)):
            best[i] = maximum(best[i], x[np.uintp(begin) + i * np.uintp(2)])
    else:
        for i in range(np.uintp(best.size)):
            best[i] = maximum(best[i], x[np.uintp(begin) + i * np.uintp(stride)])


@kernel
def gradient(gy: Any, indices: Any, gx: Any, outputs: int, inputs: int, start: int, stop: int) -> None:
    """Planes [start, stop) of gx: each is owned by one task, which adds the outputs in their order."""
    for plane in range(start, stop):
        target = gx[plane * inputs : (plane + 1) * inputs]
        target[:] = 0.0
        for i in range(plane * outputs, (plane + 1) * outputs):
            target[indices[i]] += gy[i]
