"""The oracle of resampling: one dense matrix for each axis, position by position in rational numbers where sizes alone
count, applied in float64. Shares no code with the package.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np


def position(o, size, outputs, mode, scale, align_corners):
    """Where output o of an axis lies among its inputs."""
    if align_corners:
        return Fraction(o * (size - 1), outputs - 1) if outputs > 1 else Fraction(0)
    step = Fraction(size, outputs) if scale is None else 1 / scale
    if mode == "nearest":
        return o * step if scale is None else o / scale
    centre = (o + Fraction(1, 2)) * step if scale is None else (o + 0.5) / scale
    return centre if mode == "nearest-exact" else centre - (Fraction(1, 2) if scale is None else 0.5)


def cubic(distance, a=Fraction(-3, 4)):
    d = abs(Fraction(distance))
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0


def matrix(size, outputs, mode, scale=None, align_corners=False):
    """(outputs, inputs) weights of one axis."""
    if scale is not None and (scale * size == outputs or (size == outputs and mode != "bicubic")):
        scale = None
    weights = np.zeros((outputs, size))
    for o in range(outputs):
        if mode == "area":
            start, stop = floor(Fraction(o * size, outputs)), -floor(-Fraction((o + 1) * size, outputs))
            weights[o, start:stop] = 1 / (stop - start)
            continue
        at = min(position(o, size, outputs, mode, scale, align_corners), size)
        if mode.startswith("nearest"):
            weights[o, min(floor(at), size - 1)] = 1
        elif mode == "bicubic":
            for i in range(floor(at) - 1, floor(at) + 3):
                weights[o, min(max(i, 0), size - 1)] += float(cubic(at - i))
        else:
            at = min(max(at, 0), size - 1)
            weights[o, floor(at)] += float(1 - (at - floor(at)))
            if at > floor(at):
                weights[o, floor(at) + 1] += float(at - floor(at))
    return weights


def apply(matrices, x):
    """Every spatial axis of x (N, C, *S) by its matrix."""
    for axis, weights in enumerate(matrices, start=2):
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    return x
