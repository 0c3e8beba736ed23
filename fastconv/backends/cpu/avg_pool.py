"""Average pooling by rows: window sums over divisors, and their adjoint.

Sums are float64. Interior columns of a row keep theirs in a buffer to which each tap adds a run of inputs; long windows
are summed one by one. The gradient spreads gy / divisor over the taps of each window; a plane belongs to one task, so
the order of the sums is that of the outputs. Cost: one add for each tap of an output; dividing is hidden behind memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu import sums
from fastconv.backends.cpu.host import kernel
from fastconv.backends.cpu.pool_rows import COLUMNS, LONG_WINDOW, clip, locate


@kernel
def averages(
    x: Any, y: Any, depth: Any, height: Any, width: Any, depth_divisors: Any, height_divisors: Any,
    width_divisors: Any, sizes: Any, steps: Any, interior: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """Rows [start, stop) of y."""
    accumulator = np.empty(COLUMNS)
    columns = width.shape[1]
    for task in range(start, stop):
        plane, od, oh, first, last = locate(task, depth, height, width)
        base = plane * sizes[0] * sizes[1] * sizes[2]
        low, high = clip(interior, first, last)
        total = accumulator[: last - first]
        total[:] = 0.0
        for d in range(depth[0, od], depth[1, od], steps[0]):
            for h in range(height[0, oh], height[1, oh], steps[1]):
                row = base + (d * sizes[1] + h) * sizes[2]
                for o in range(first, low):
                    total[o - first] += _sum_of_taps(x, row + width[0, o], row + width[1, o], steps[2])
                for o in range(high, last):
                    total[o - first] += _sum_of_taps(x, row + width[0, o], row + width[1, o], steps[2])
                if low < high:
                    for w in range(row + width[0, low], row + width[1, low], steps[2]):
                        _add(total[low - first : high - first], x, w, interior[2])
        out = ((plane * depth.shape[1] + od) * height.shape[1] + oh) * columns
        _divide(
            total, width_divisors[first:last], depth_divisors[od] * height_divisors[oh], y[out + first : out + last]
        )


@kernel
def _divide(total: Any, divisors: Any, factor: float, y: Any) -> None:
    for i in range(total.size):
        y[i] = total[i] / (divisors[i] * factor)


@kernel
def _sum_of_taps(x: Any, begin: int, end: int, step: int) -> float:
    total = 0.0
    if step == 1 and end - begin >= LONG_WINDOW:
        total = sums.total(x[begin:end])
    else:
        for w in range(begin, end, step):
            total += x[w]
    return total


@kernel
def _add(total: Any, x: Any, begin: int, stride: int) -> None:
    """total[i] += x[begin + i · stride]."""
    if stride == 1:
        terms = x[begin : begin + total.size]
        for i in range(terms.size):
            total[i] += terms[i]
    elif stride == 2:
        # Unsigned, because an index that might be negative keeps a loop from vectorising.
        for i in range(np.uintp(total.size)):
            total[i] += x[np.uintp(begin) + i * np.uintp(2)]
    else:
        for i in range(np.uintp(total.size)):
            total[i] += x[np.uintp(begin) + i * np.uintp(stride)]


@kernel
def gradient(
    gy: Any, gx: Any, depth: Any, height: Any, width: Any, depth_divisors: Any, height_divisors: Any,
    width_divisors: Any, sizes: Any, steps: Any, interior: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """Planes [start, stop) of gx."""
    columns, volume = width.shape[1], sizes[0] * sizes[1] * sizes[2]
    rows = depth.shape[1] * height.shape[1]
    shares = np.empty(columns, gx.dtype)
    for plane in range(start, stop):
        gx[plane * volume : (plane + 1) * volume] = 0.0
        for out in range(rows):
            od, oh = out // height.shape[1], out % height.shape[1]
            begin = (plane * rows + out) * columns
            _divide(gy[begin : begin + columns], width_divisors, depth_divisors[od] * height_divisors[oh], shares)
            for d in range(depth[0, od], depth[1, od], steps[0]):
                for h in range(height[0, oh], height[1, oh], steps[1]):
                    row = plane * volume + (d * sizes[1] + h) * sizes[2]
                    _spread(shares, gx[row : row + sizes[2]], width, steps[2], interior)


@kernel
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


@kernel
def _add_to_taps(target: Any, begin: int, end: int, step: int, share: Any) -> None:
    if step == 1:
        run = target[begin:end]
        for i in range(run.size):
            run[i] += share
    else:
        for w in range(begin, end, step):
            target[w] += share


@kernel
def _add_strided(target: Any, begin: int, stride: int, shares: Any) -> None:
    """target[begin + i · stride] += shares[i]."""
    if stride == 1:
        run = target[begin : begin + shares.size]
        for i in range(run.size):
            run[i] += shares[i]
    else:
        for i in range(np.uintp(shares.size)):
            target[np.uintp(begin) + i * np.uintp(stride)] += shares[i]
