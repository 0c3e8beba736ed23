"""Correlations as matrix products, on tensor cores or by FMAs: the launches of kernels/implicit_gemm.cu.

All numbers here follow from the geometry, the dtype and the kind of products.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.correlation import Axes, Correlation, Tile, records, tile
from fastconv.backends.cuda.launch import MAX_GRID_YZ, blocks_for, shared_limit
from fastconv.backends.cuda.module import TYPES, Template
from fastconv.backends.cuda.tables import Table

Array = Any

THREADS = PIXELS = 128
STAGES = 3
SHARED_BYTES = 64 << 10
"""What a block may take where several are to find room."""

SPLIT_BLOCKS, SPLIT_WORDS, MAX_SPLITS = 32, 128, 8
"""The chunks of a sum are split where a sample gives fewer blocks than this, but not into parts shorter than that."""

GRID = np.dtype([(name, np.int32) for name in ("row_blocks", "boxes", "splits", "tiles")])


@dataclass(frozen=True)
class Products:
    """How an instance of the kernel multiplies: the constants of tensor_math.cuh and fma_math.cuh."""

    cpp: str
    rows: int
    channels: int
    """Channels in a word."""
    step_words: int
    stage_steps: int
    step_items: int
    step_weights: int
    word_bytes: int
    """Of a word in the tile, and of a weight."""


def tensor(kind: str, m_tiles: int) -> Products:
    """Products on tensor cores with 16 · m_tiles rows."""
    parts, channels = (2 if kind == "Tf32x3" else 1), (2 if kind.startswith("Half") else 1)
    items = m_tiles * 128
    return Products(f"Tensor<{kind}, {m_tiles}>", 16 * m_tiles, channels, 8, 2, items, items * parts, 4)


def scalar(type_: str, side: int) -> Products:
    """Products by FMA with 8 · side rows."""
    rows = 8 * side
    return Products(f"Scalar<{type_}, {side}>", rows, 1, 1, 8, rows, rows, 8 if type_ == "double" else 4)


TENSOR = {
    "3xtf32": [tensor("Tf32x3", tiles) for tiles in (1, 2, 4)],
    "tf32": [tensor("Tf32", tiles) for tiles in (1, 2, 4)],
    "float16": [tensor("Half<__half>", tiles) for tiles in (1, 2, 4)],
    "bfloat16": [tensor("Half<__nv_bfloat16>", tiles) for tiles in (1, 2, 4)],
}
FMA = {name: [scalar(cpp, side) for side in (2, 4 if name == "float64" else 8)] for name, cpp in TYPES.items()}

_FAMILIES = ((TENSOR, 80), (FMA, 75))
_INSTANCES = [
    ([(products.cpp,) for choices in family.values() for products in choices], lowest) for family, lowest in _FAMILIES
]
PACK = [Template("implicit_gemm.cu", "pack", instances, lowest) for instances, lowest in _INSTANCES]
MULTIPLY = [Template("implicit_gemm.cu", "implicit_gemm", instances, lowest) for instances, lowest in _INSTANCES]
COMBINE = Template("implicit_gemm.cu", "combine", product(TYPES.values()))


def kind_of_products(dtype: str, precision: str, capability: int) -> str:
    """The name of the products: a key of `TENSOR`, or "fma"."""
    if dtype == "float64" or capability < 80 or (dtype == "float32" and precision == "highest"):
        return "fma"
    return dtype if dtype != "float32" else {"default": "3xtf32", "fast": "tf32"}[precision]


@dataclass(frozen=True)
class Chunks:
    """How the sum of a phase is cut."""

    words: int
    """Words of channels in a chunk."""
    steps: int
    """Steps of a chunk: all its words for all taps, filled up to whole steps."""
    count: int


def chunks(
    channels: int, taps: int, found: Tile, products: Products, tiles: int = 2, limit: int = SHARED_BYTES
) -> Chunks | None:
    """The chunks that cost least in filled-up steps and in barriers and fit into shared memory; None if none does."""
    words = -(-channels // products.channels)
    best, least = None, float("inf")
    for chunk in range(1, min(words, 64) + 1):
        steps = -(-chunk * taps // products.step_words)
        one = Chunks(chunk, steps, -(-words // chunk))
        if shared_bytes(one, found, products, tiles) > limit:
            break
        cost = one.count * (steps * products.step_words + 8)
        if cost <= least:
            best, least = one, cost
    return best


def shared_bytes(cut: Chunks, found: Tile, products: Products, tiles: int = 2) -> int:
    """Shared memory of a block: stages of weights, tiles, offsets of the steps, positions of the source.

    At the end all pixels' places in the target lie where the positions were.
    """
    stages = STAGES * products.stage_steps * products.step_weights
    positions = max(found.positions, PIXELS)
    return (stages + tiles * cut.words * found.pitch) * products.word_bytes + 4 * (
        cut.steps * products.step_words + positions
    )


def splits_of(correlation: Correlation, blocks: float, words: int) -> int:
    """Into how many parts the chunks of a sum of so many words go, with so many blocks for each sample."""
    if len(correlation.phases) > 1 or not correlation.whole:
        return 1
    return max(1, min(MAX_SPLITS, int(SPLIT_BLOCKS / blocks), words // SPLIT_WORDS))


class ImplicitGemm:
    """A correlation as a matrix product."""

    def __init__(self, correlation: Correlation, dtype: str, kind: str, capability: int) -> None:
        self.name = f"implicit-gemm {kind}"
        self.correlation = correlation
        choices = FMA[dtype] if kind == "fma" else TENSOR[kind]
        self.products = next((one for one in choices if one.rows >= correlation.rows), choices[-1])
        self.computed = np.dtype("float64" if dtype == "float64" else "float32")
        phases = correlation.phases
        taps = [prod(len(axis.offsets) for axis in axes) for axes in phases]
        self.fits = 0 < len(phases) <= MAX_GRID_YZ and 0 not in taps
        if not self.fits:
            return
        limit = shared_limit(capability)
        for pixels, at_a_time, most in (
            (PIXELS, 2, SHARED_BYTES),
            (PIXELS, 1, SHARED_BYTES),
            (PIXELS, 1, limit),
            *((PIXELS // smaller, 1, limit) for smaller in (2, 4, 8)),  # the other threads are idle
        ):
            tiles = [tile(axes, pixels) for axes in phases]
            cuts = [
                chunks(correlation.channels, count, found, self.products, at_a_time, most)
                for count, found in zip(taps, tiles)
            ]
            whole = [cut for cut in cuts if cut is not None]
            self.fits = len(whole) == len(cuts) and all(near(correlation, *pair) for pair in zip(phases, tiles))
            if self.fits:
                self._lay_out(tiles, whole, at_a_time, TYPES[dtype])
                return

    def _lay_out(self, tiles: list[Tile], cuts: list[Chunks], at_a_time: int, type_: str) -> None:
        correlation, products = self.correlation, self.products
        phases, taps = records(correlation, tiles)
        row_blocks = -(-correlation.rows // products.rows)
        self.weights, self.items = 0, 0
        for phase, cut in zip(phases, cuts):
            phase["chunk"], phase["steps"], phase["weights"] = cut.words, cut.steps, self.weights
            steps = correlation.groups * row_blocks * cut.count * cut.steps
            self.weights += steps * products.step_weights
            self.items = max(self.items, steps * products.step_items)
        boxes = max(prod(found.boxes) for found in tiles)
        self.shared = max(shared_bytes(cut, found, products, at_a_time) for cut, found in zip(cuts, tiles))
        self.box_samples = min(found.samples for found in tiles)
        blocks = row_blocks * boxes * correlation.groups
        words = cuts[0].count * cuts[0].steps * products.step_words
        self.splits = min(cuts[0].count, splits_of(correlation, blocks / self.box_samples, words))
        self.grid = np.array((row_blocks, boxes, self.splits, at_a_time), GRID)[()]
        self.blocks = blocks * self.splits
        self.phases, self.taps, self.count = Table(phases), Table(taps), len(phases)
        self._type = type_

    def run(self, x: Array, w: Array, b: Array | None, y: Array, relu: bool) -> None:
        """activation(correlation of x with w + b) → y."""
        xp = platform.current().xp
        samples = x.shape[0]
        problem = self.correlation.problem(samples, relu)
        tables = self.phases.on_device(), self.taps.on_device()
        cpp, row_blocks = self.products.cpp, int(self.grid["row_blocks"])
        family = 0 if cpp.startswith("Tensor") else 1
        packed = xp.empty(self.weights, self.computed if family else np.uint32)
        pack_grid = *blocks_for(self.items, THREADS), self.count
        PACK[family](cpp)(pack_grid, (THREADS,), w, packed, *tables, problem, row_blocks)
        partial = xp.empty(self.splits * y.size, self.computed) if self.splits > 1 else None
        grid = self.blocks * -(-samples // self.box_samples), self.count
        arguments = x, packed, w, b, y, partial, *tables, problem, self.grid
        MULTIPLY[family](cpp)(grid, (THREADS,), *arguments, shared=self.shared)
        if partial is not None:
            combine = COMBINE(self._type)
            combine(blocks_for(y.size), (256,), partial, x, w, b, y, *tables, problem, self.splits)


def near(correlation: Correlation, axes: Axes, found: Tile) -> bool:
    """Whether 32 bits hold how far a tile reaches in the source, and its box in the target, in elements."""
    read = [extent * spacing for extent, spacing in zip(found.extent, found.spacing)]
    written = [side * axis.stride for side, axis in zip(found.box, axes)]
    samples = found.samples * correlation.groups
    for sizes, channels, (depth, rows, columns) in (
        (correlation.source, correlation.channels, read),
        (correlation.target, correlation.rows, written),
    ):
        _, height, width = sizes
        if (depth * height + rows) * width + columns + samples * channels * prod(sizes) >= 2**31:
            return False
    return True
