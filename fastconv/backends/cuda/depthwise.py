"""Correlations with few channels in a group, depthwise convolution above all: the launches of kernels/depthwise.cu."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fastconv.backends.axes import Axis
from fastconv.backends.cuda.correlation import HALO_COST, Axes, Correlation, Records, Tile, cut, records
from fastconv.backends.cuda.implicit_gemm import SHARED_BYTES, THREADS, near
from fastconv.backends.cuda.launch import MAX_GRID_YZ
from fastconv.backends.cuda.module import TYPES, Template
from fastconv.backends.cuda.tables import Table

Array = Any

RUN = 7
"""Outputs along a line that a thread computes at a time."""

FEW = 8
"""Channels and rows of a group up to which this is the family of choice where one of them is 1."""

LINE_TAPS = {1: (3, 5, 7), 2: (3,)}
"""Taps that are computed at a time, for a stride."""

LINE_CHOICES = [(type_, *choice) for type_ in TYPES.values() for choice in ((1, 1), (3, 1), (5, 1), (7, 1), (3, 2))]
"""Type, taps at a time and stride: the arguments of the kernels' templates."""

_DEPTHWISE = Template("depthwise.cu", "depthwise", LINE_CHOICES)

GRID = np.dtype([(name, np.int32) for name in ("boxes", "units", "axis")])


@dataclass(frozen=True)
class Lines:
    """How the taps along one axis, the line, are computed in all phases."""

    axis: int
    taps: int
    """Taps at a time: those of the kernel's template. With 1 nothing is shared between outputs."""
    stride: int
    """Numbers of the line from one output of a run to the next."""
    apart: tuple[int, ...]
    """In each phase: outputs from one of a run to the next."""


def lines(correlation: Correlation) -> Lines:
    """The line of a correlation: an axis on which taps slide, if there is one the last but one."""
    phases = correlation.phases
    axis = next((i for i in (1, 0) if all(_slides(axes[i]) for axes in phases)), 2)
    chosen = [axes[axis] for axes in phases]
    steps = [_steps(one) for one in chosen]
    counts = [len(one.offsets) for one in chosen]
    if all(step == 1 and RUN * tap < 3 * one.outputs for (step, tap), one in zip(steps, chosen)):
        stride, apart = 1, tuple(tap for _, tap in steps)
    elif all(step == 2 and tap == 1 for step, tap in steps):
        stride, apart = 2, (1,) * len(phases)
    else:
        return Lines(axis, 1, 1, (1,) * len(phases))
    taps = min(LINE_TAPS[stride], key=lambda size: sum(_loads(count, size, stride) for count in counts))
    if max(counts) < taps:
        return Lines(axis, 1, 1, apart)
    return Lines(axis, taps, stride, apart)


def most_positions(bytes_: int) -> int:
    """How many positions of so many bytes, and four for where they are, take two thirds of the shared memory."""
    return SHARED_BYTES * 2 // 3 // (bytes_ + 4)


def is_narrow(correlation: Correlation) -> bool:
    """Whether groups have so few channels that a matrix product would mostly multiply zeros."""
    few, more = sorted((correlation.channels, correlation.rows))
    return few == 1 and more <= FEW


def name_of(correlation: Correlation) -> str:
    """What `explain_conv` calls this family."""
    return "depthwise" if correlation.groups > 1 else "few-channel"


def line_records(correlation: Correlation, tiles: list[Tile], found: Lines) -> tuple[Records, Records]:
    """The `Phase`s and `Tap`s, with what the kernels read of the lines."""
    phases, taps = records(correlation, tiles, line=found.axis)
    for phase, axes, tile, apart in zip(phases, correlation.phases, tiles, found.apart):
        phase["line_taps"], phase["apart"] = len(axes[found.axis].offsets), apart
        phase["unit"] = _steps(axes[found.axis])[1] * prod(tile.extent[found.axis + 1 :])
    return phases, taps


def _slides(axis: Axis) -> bool:
    return len(axis.offsets) > 1 and axis.outputs >= RUN // 2


def _loads(count: int, size: int, stride: int) -> int:
    """Numbers of a line with `count` taps that a run loads, `size` taps at a time."""
    whole, rest = divmod(count, size)
    return whole * ((RUN - 1) * stride + size) + rest * RUN


def _steps(axis: Axis) -> tuple[int, int]:
    """Positions kept in a tile from one output to the next, and from one tap to the next."""
    spacing = cut((axis,), 1, (1,)).spacing[-1]
    offsets = sorted(axis.offsets)
    return axis.step // spacing, (offsets[1] - offsets[0]) // spacing if len(offsets) > 1 else 1


def box_of_lines(axes: Axes, axis: int, apart: int, most: int) -> Tile | None:
    """The box whose runs occupy the threads of a block best and read least, but no more than `most` positions."""
    sides = [sorted({2**i for i in range(8)} | {-(-one.outputs // parts) for parts in range(1, 9)}) for one in axes]
    sides = [[side for side in of_axis if side < 2 * one.outputs] for of_axis, one in zip(sides, axes)]
    runs = [apart * n for n in range(1, 1 + max(1, THREADS // apart)) if RUN * apart * (n - 1) < axes[axis].outputs]
    sides[axis] = runs
    best, least = None, float("inf")
    for chosen in itertools.product(*sides):
        runs_in_box = prod(chosen)
        if runs_in_box > max(THREADS, apart):
            continue
        found = cut(axes, 1, tuple(side * (RUN if i == axis else 1) for i, side in enumerate(chosen)))
        if found.positions > most:
            continue
        boxes = prod(found.boxes)
        threads = THREADS / max(1, THREADS // runs_in_box) if boxes == 1 else max(runs_in_box, THREADS)
        cost = boxes * (RUN * threads + HALO_COST * found.positions)
        if cost < least:
            best, least = found, cost
    return best


class Depthwise:
    """A correlation with few channels in a group."""

    def __init__(self, correlation: Correlation, dtype: str) -> None:
        self.correlation, self._type = correlation, TYPES[dtype]
        self._itemsize = 8 if dtype == "float64" else 4
        self.name = name_of(correlation)
        reached = all(axis.offsets for axes in correlation.phases for axis in axes)
        self.fits = is_narrow(correlation) and reached and 0 < len(correlation.phases) <= MAX_GRID_YZ
        if self.fits:
            self._lay_out()

    def _lay_out(self) -> None:
        correlation = self.correlation
        self.lines = found = lines(correlation)
        most = most_positions(self._itemsize * correlation.channels)
        cuts = [box_of_lines(axes, found.axis, apart, most) for axes, apart in zip(correlation.phases, found.apart)]
        tiles = [tile for tile in cuts if tile is not None]
        if len(tiles) < len(cuts):
            self.fits = False
            return
        phases, taps = line_records(correlation, tiles, found)
        boxes = max(prod(tile.boxes) for tile in tiles)
        runs = max(prod(tile.box) // RUN for tile in tiles)
        units = max(1, THREADS // runs) if boxes == 1 else 1
        while units > 1 and self._shared(tiles, units) > SHARED_BYTES:
            units //= 2
        self.shared = self._shared(tiles, units)
        self.fits = self.shared <= SHARED_BYTES and all(
            near(correlation, *pair) for pair in zip(correlation.phases, tiles)
        )
        self.grid = np.array((boxes, units, found.axis), GRID)[()]
        self.boxes, self.units, self.count = boxes, units, len(phases)
        self.phases, self.taps = Table(phases), Table(taps)

    def _shared(self, tiles: list[Tile], units: int) -> int:
        """Shared memory of a block: tiles, weights, perhaps results, positions of the source."""
        correlation, most = self.correlation, 0
        for axes, tile in zip(correlation.phases, tiles):
            filters = correlation.channels * correlation.rows * prod(len(axis.offsets) for axis in axes)
            results = prod(tile.box) if self.lines.axis == 2 else 0
            numbers = units * (correlation.channels * tile.pitch + filters + results)
            most = max(most, numbers * self._itemsize + 4 * tile.positions)
        return most

    def run(self, x: Array, w: Array, b: Array | None, y: Array, relu: bool) -> None:
        """activation(correlation of x with w + b) → y."""
        problem = self.correlation.problem(x.shape[0], relu)
        units = -(-x.shape[0] * self.correlation.groups // self.units)
        tables = self.phases.on_device(), self.taps.on_device()
        kernel = _DEPTHWISE(self._type, self.lines.taps, self.lines.stride)
        grid = self.boxes * units, self.count
        kernel(grid, (THREADS,), x, w, b, y, *tables, problem, self.grid, shared=self.shared)
