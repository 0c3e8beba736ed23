"""Weight gradients with few channels in a group: the launches of kernels/depthwise_weight_grad.cu."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import Any

import numpy as np

from fastconv.backends.cuda import correlation as correlations
from fastconv.backends.cuda import platform
from fastconv.backends.cuda.depthwise import (
    LINE_CHOICES,
    RUN,
    box_of_lines,
    is_narrow,
    line_records,
    lines,
    most_positions,
    name_of,
)
from fastconv.backends.cuda.implicit_gemm import SHARED_BYTES, THREADS, near
from fastconv.backends.cuda.module import TYPES, Template
from fastconv.backends.cuda.tables import Table
from fastconv.backends.cuda.weight_grad import combine
from fastconv.geometry import ConvGeometry

Array = Any

BLOCKS, MAX_SPLITS = 1024, 64
"""Boxes are split among so many blocks of four to a multiprocessor that a device is full, but not into more parts."""

GRID = np.dtype([(name, np.int32) for name in ("splits", "axis")])

_KERNEL = Template("depthwise_weight_grad.cu", "depthwise_weight_grad", LINE_CHOICES)


class DepthwiseWeightGrad:
    """The weight gradient of a geometry with few channels in a group."""

    def __init__(self, geometry: ConvGeometry, dtype: str) -> None:
        self.correlation, self._type = correlations.forward(geometry), TYPES[dtype]
        self.computed = np.dtype("float64" if dtype == "float64" else "float32")
        self.name = name_of(self.correlation)
        reached = all(axis.offsets for axis in self.correlation.phases[0])
        self.fits = is_narrow(self.correlation) and reached and self._lay_out()

    def _lay_out(self) -> bool:
        correlation = self.correlation
        axes = correlation.phases[0]
        self.lines = found = lines(correlation)
        tile = box_of_lines(axes, found.axis, found.apart[0], most_positions(self.computed.itemsize))
        if tile is None:
            return False
        if prod(tile.boxes) == 1:
            samples = max(1, THREADS * RUN // prod(tile.box))
            tile = dataclasses.replace(tile, samples=samples)
        phases, taps = line_records(correlation, [tile], found)
        phase = phases[0]
        jobs = len(taps) // phase["line_taps"] * -(-phase["line_taps"] // found.taps)
        outputs = tile.samples * prod(tile.box)
        numbers = max(tile.positions + (found.taps - 1) * phase["unit"] + outputs, THREADS * found.taps)
        self.shared = int(numbers) * self.computed.itemsize + 4 * (outputs + tile.positions)
        self.filters = correlation.groups * correlation.rows * correlation.channels
        self.splits = max(1, min(MAX_SPLITS, BLOCKS // self.filters))
        self.boxes, self.samples, self.weights = prod(tile.boxes), tile.samples, self.filters * len(taps)
        self.phases, self.taps = Table(phases), Table(taps)
        return bool(jobs <= THREADS and self.shared <= SHARED_BYTES and near(correlation, axes, tile))

    def run(self, gy: Array, x: Array, gw: Array) -> None:
        """The gradient → gw, which holds zeros: taps that reach nothing but padding are passed over."""
        splits = min(self.splits, self.boxes * -(-x.shape[0] // self.samples))
        problem, grid = self.correlation.problem(x.shape[0]), np.array((splits, self.lines.axis), GRID)[()]
        tables = self.phases.on_device(), self.taps.on_device()
        partial = platform.current().xp.empty(splits * self.weights, self.computed)
        kernel = _KERNEL(self._type, self.lines.taps, self.lines.stride)
        kernel((self.filters * splits,), (THREADS,), gy, x, partial, *tables, problem, grid, shared=self.shared)
        combine(partial, splits, self.weights, gy, x, gw, tables, problem)
