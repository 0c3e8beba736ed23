"""The oracle of pooling: windows by enumeration, taps one by one, in float64. Shares no code with the package."""

from __future__ import annotations

from itertools import product

import numpy as np


def axis_windows(size, kernel, stride, before, after, dilation=1, ceil_mode=False):
    """For each output of an axis the positions of its taps inside the input, and its size with padding."""
    extent = dilation * (kernel - 1) + 1
    starts = list(range(-before, size + after - extent + 1, stride))
    if ceil_mode and (size + before + after - extent) % stride and starts[-1] + stride < size:
        starts.append(starts[-1] + stride)
    windows = []
    for start in starts:
        taps = [start + dilation * tap for tap in range(kernel)]
        windows.append(([tap for tap in taps if 0 <= tap < size], sum(tap < size + after for tap in taps)))
    return windows


def adaptive_windows(size, outputs):
    """The windows of an adaptive pooling: from floor(o·S/O) to ceil((o + 1)·S/O)."""
    windows = []
    for o in range(outputs):
        taps = [i for i in range(size) if i > o * size / outputs - 1 and i < (o + 1) * size / outputs]
        windows.append((taps, len(taps)))
    return windows


def outputs(axes):
    """For every output its place, its taps in the order of the plane, and its size with padding."""
    for place in product(*(range(len(windows)) for windows in axes)):
        chosen = [windows[o] for windows, o in zip(axes, place)]
        yield place, list(product(*(taps for taps, _ in chosen))), int(np.prod([size for _, size in chosen]))


def max_pool(x, axes):
    """Values and flat indices: a later tap wins if it is larger, or NaN."""
    shape = x.shape[:2] + tuple(len(windows) for windows in axes)
    values, indices = np.empty(shape, x.dtype), np.empty(shape, np.int64)
    for place, taps, _ in outputs(axes):
        best = x[(..., *taps[0])].copy()
        winner = np.full(best.shape, np.ravel_multi_index(taps[0], x.shape[2:]))
        for tap in taps:
            value = x[(..., *tap)]
            wins = (value > best) | np.isnan(value)
            best[wins] = value[wins]
            winner[wins] = np.ravel_multi_index(tap, x.shape[2:])
        values[(..., *place)], indices[(..., *place)] = best, winner
    return values, indices


def max_pool_grad(gy, indices, spatial):
    gx = np.zeros((*gy.shape[:2], int(np.prod(spatial))))
    for n, c in np.ndindex(*gy.shape[:2]):
        for g, index in zip(gy[n, c].ravel(), indices[n, c].ravel()):
            gx[n, c, index] += g
    return gx.reshape(gy.shape[:2] + tuple(spatial))


def avg_pool(x, axes, count_include_pad=True, divisor=None):
    """Window sums over their size (with padding or without) or over `divisor`."""
    y = np.empty(x.shape[:2] + tuple(len(windows) for windows in axes))
    for place, taps, size in outputs(axes):
        total = np.zeros(x.shape[:2])
        for tap in taps:
            total += x[(..., *tap)]
        y[(..., *place)] = total / (divisor or (size if count_include_pad else len(taps)))
    return y


def avg_pool_grad(gy, axes, spatial, count_include_pad=True, divisor=None):
    gx = np.zeros(gy.shape[:2] + tuple(spatial))
    for place, taps, size in outputs(axes):
        share = gy[(..., *place)] / (divisor or (size if count_include_pad else len(taps)))
        for tap in taps:
            gx[(..., *tap)] += share
    return gx
