"""Weight gradients as matrix products, on tensor cores or by FMAs: the launches of kernels/weight_grad.cu."""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

import numpy as np

from fastconv.backends.cuda import correlation as correlations
from fastconv.backends.cuda import platform
from fastconv.backends.cuda.correlation import records, tile
from fastconv.backends.cuda.implicit_gemm import FMA, TENSOR, THREADS, Products, near
from fastconv.backends.cuda.launch import blocks_for, shared_limit
from fastconv.backends.cuda.module import TYPES, Template
from fastconv.backends.cuda.tables import Table
from fastconv.geometry import ConvGeometry

Array = Any

BOX, COLUMNS = 64, 128
BLOCKS = 256
"""Boxes are split among so many blocks that a device is full: about two for each multiprocessor of the largest."""

GRID = np.dtype([(name, np.int32) for name in ("row_blocks", "column_blocks", "splits", "width")])

_INSTANCES = [
    [(f"Grad{products.cpp}",) for choices in family.values() for products in choices] for family in (TENSOR, FMA)
]
_MULTIPLY = [
    Template("weight_grad.cu", "weight_grad", instances, lowest) for instances, lowest in zip(_INSTANCES, (80, 75))
]
_COMBINE = Template("weight_grad.cu", "combine_weight_grad", itertools.product(TYPES.values()))


def shared_bytes(products: Products, itemsize: int, channels: int, pitch: int, positions: int) -> int:
    """Shared memory of a block: gy, the tile of so many channels, and three tables."""
    if products.step_words == 1:
        stored, left = products.word_bytes, BOX * (products.rows + 4)
    else:
        stored, left = itemsize, products.rows * (BOX + 4 * products.channels)
    return stored * (left + channels * pitch) + 4 * (2 * BOX + positions)


class WeightGrad:
    """The weight gradient of a geometry as a matrix product."""

    def __init__(self, geometry: ConvGeometry, dtype: str, kind: str, capability: int) -> None:
        self.name = f"implicit-gemm {kind}"
        self.correlation = correlation = correlations.forward(geometry)
        choices = FMA[dtype] if kind == "fma" else TENSOR[kind]
        self.products = next((one for one in choices if one.rows >= correlation.rows), choices[-1])
        self._itemsize = {"float64": 8, "float32": 4}.get(dtype, 2)
        self.computed = np.dtype("float64" if dtype == "float64" else "float32")
        taps = prod(len(axis.offsets) for axis in correlation.phases[0])
        self.fits = taps > 0 and self._lay_out(taps, capability)

    def _lay_out(self, taps: int, capability: int) -> bool:
        correlation, products = self.correlation, self.products
        limit, axes = shared_limit(capability), correlation.phases[0]
        for pixels, width in itertools.product((BOX, BOX // 2, BOX // 4, BOX // 8), (COLUMNS, 64, 32, 16)):
            found = tile(axes, pixels)  # where it is small, some threads multiply zeros
            channels = min(correlation.channels, (width - 2) // taps + 2)
            self.shared = shared_bytes(products, self._itemsize, channels, found.pitch, found.positions)
            if self.shared <= limit:
                break
        phases, table = records(correlation, [found])
        phases["chunk"] = channels
        self.width, self.columns = width, correlation.channels * taps
        self.row_blocks, self.column_blocks = -(-correlation.rows // products.rows), -(-self.columns // width)
        self.blocks = self.row_blocks * self.column_blocks * correlation.groups
        self.splits = min(64, -(-BLOCKS // self.blocks))
        self.boxes, self.box_samples = prod(found.boxes), found.samples
        self.phases, self.taps = Table(phases), Table(table)
        return self.shared <= limit and near(correlation, axes, found)

    def run(self, gy: Array, x: Array, gw: Array) -> None:
        """The gradient → gw, which holds zeros: taps that reach nothing but padding are passed over."""
        samples = x.shape[0]
        splits = min(self.splits, self.boxes * -(-samples // self.box_samples))
        problem, cpp = self.correlation.problem(samples), f"Grad{self.products.cpp}"
        tables = self.phases.on_device(), self.taps.on_device()
        weights = gw.shape[0] * self.columns
        partial = platform.current().xp.empty(splits * weights, self.computed)
        grid = np.array((self.row_blocks, self.column_blocks, splits, self.width), GRID)[()]
        multiply = _MULTIPLY[0 if self.products.step_words > 1 else 1](cpp)
        multiply((self.blocks * splits,), (THREADS,), gy, x, partial, *tables, problem, grid, shared=self.shared)
        combine(partial, splits, weights, gy, x, gw, tables, problem)


def combine(
    partial: Array, splits: int, weights: int, gy: Array, x: Array, gw: Array, tables: tuple[Array, Array], problem: Any
) -> None:
    """The partial sums of so many weights, split after split → gw."""
    kernel = _COMBINE(TYPES[gw.dtype.name])
    kernel(blocks_for(weights), (256,), partial, gy, x, gw, *tables, problem, splits)
