"""The phases of a strided input gradient together, as the outputs of Winograd's tiles in turns (winograd_forms.py)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis, lifted
from fastconv.backends.cpu.plan import Correlation
from fastconv.backends.cpu.winograd_forms import phase_taps


class Spread(NamedTuple):
    """The phases of the outputs of an axis together: their tiles, all of their taps, and their step."""

    tiles: Axis
    taps: int
    step: int


def spread_axes(axes: list[list[Axis]], kernel: tuple[int, ...], outputs: int) -> tuple[Spread, Spread] | None:
    """The tiles of all phases in height and width, of so many outputs of each phase; None where they do not suit."""
    height, width = (_spread(phases, taps, outputs) for phases, taps in zip(axes, lifted(kernel, 1)[1:]))
    return (height, width) if height and width else None


def _spread(phases: list[Axis], taps: int, outputs: int) -> Spread | None:
    """The tiles of all phases of an axis of an input gradient, if no tap is missing and several meet each output.

    In a tile outputs of short phases come first: all phases then read its positions from the first on.
    """
    step, one = len(phases), phases[0]
    if taps == step == 1:
        return Spread(replace(one, taps=(0,)), 1, 1)
    dilated = any(axis.spacing > 1 or axis.stride != step for axis in phases)
    if dilated or sorted(tap for axis in phases for tap in axis.taps) != list(range(taps)) or taps <= step:
        return None
    most = phase_taps(taps, step)
    short = step * most - taps
    padding = step * one.offsets[0] + one.taps[0] - one.first
    number = (padding + short) // step  # of the first output, counted from the padding's first
    first, tile = step * number - short - padding, outputs * step
    positions = range(most + outputs - 1)
    offsets = tuple(number - (most - 1) + i for i in positions)
    tiles = -(-(one.target - first) // tile)
    return Spread(Axis(one.size, tiles, outputs, offsets, tuple(positions), first, 1, one.target), taps, step)


def reversed_taps(correlation: Correlation) -> npt.NDArray[np.int64]:
    """All taps of each plane, last first, in the order of the planes' offsets: as the gradient meets them."""
    depth, (_, *plane) = correlation.axes[0], lifted(correlation.kernel, 1)
    planes = [depth.taps[i] for i in np.argsort(depth.offsets)]
    of_plane = np.arange(math.prod(plane), dtype=np.int64)[::-1]
    return np.concatenate([plane * len(of_plane) + of_plane for plane in planes])
