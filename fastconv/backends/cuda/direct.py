"""Convolution and its gradients straight from the definition, for what no other family takes: kernels/direct.cu."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

from fastconv.backends.cuda import correlation as correlations
from fastconv.backends.cuda.correlation import PHASE, Correlation, records
from fastconv.backends.cuda.launch import MAX_GRID_YZ, THREADS, blocks_for
from fastconv.backends.cuda.module import TYPES, Template
from fastconv.backends.cuda.tables import Table
from fastconv.geometry import ConvGeometry

Array = Any

_DIRECT = Template("direct.cu", "direct", product(TYPES.values()))
_WEIGHT_GRAD = Template("direct.cu", "direct_weight_grad", product(TYPES.values()))


class Direct:
    """A correlation, one thread for each output."""

    name = "direct"

    def __init__(self, correlation: Correlation) -> None:
        self.correlation = correlation
        phases, taps = records(correlation)
        self.count, self.phases, self.taps = len(phases), Table(phases), Table(taps)
        self.outputs = max((prod(axis.outputs for axis in axes) for axes in correlation.phases), default=0)

    def run(self, x: Array, w: Array, b: Array | None, y: Array, relu: bool) -> None:
        """activation(correlation of x with w + b) → y."""
        if not self.count:  # no tap reaches anything
            return
        problem = self.correlation.problem(x.shape[0], relu)
        phases, taps = self.phases.on_device(), self.taps.on_device()
        (blocks,) = blocks_for(y.shape[0] * y.shape[1] * self.outputs)
        for first in range(0, self.count, MAX_GRID_YZ):
            grid = blocks, min(MAX_GRID_YZ, self.count - first)
            _DIRECT(TYPES[x.dtype.name])(grid, (THREADS,), x, w, b, y, phases[first * PHASE.itemsize :], taps, problem)


class DirectWeightGrad:
    """A weight gradient, one thread for each weight."""

    name = "direct"

    def __init__(self, geometry: ConvGeometry) -> None:
        self.correlation = correlations.forward(geometry)
        phases, taps = records(self.correlation)
        self.phases, self.taps, self.count = Table(phases), Table(taps), len(taps)

    def run(self, gy: Array, x: Array, gw: Array) -> None:
        """The gradient → gw, which holds zeros: taps that reach nothing but padding are passed over."""
        problem = self.correlation.problem(x.shape[0])
        grid = blocks_for(gw.shape[0] * gw.shape[1] * self.count)
        kernel = _WEIGHT_GRAD(TYPES[x.dtype.name])
        kernel(grid, (THREADS,), gy, x, gw, self.phases.on_device(), self.taps.on_device(), problem)
