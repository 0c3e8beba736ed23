"""When and how Winograd's F(4×4, 3×3) replaces a correlation; the kernels and the idea are in winograd_kernels.py."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, flat
from fastconv.backends.cpu.plan import Correlation
from fastconv.backends.cpu.scratch import call_scratch, scratch
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.winograd_kernels import (
    FILTER_PADDING,
    LANES,
    STAGGER,
    TILE_COLUMNS,
    VECTOR_OUTPUTS,
    tile_tables,
    transform_filters,
    transform_tiles,
    winograd_boxes,
    winograd_tiles,
)
from fastconv.backends.cpu.winograd_simd import FREQUENCIES, OUTPUTS
from fastconv.backends.threads import parallel_for

_SMALL_OUTPUTS = 400
_PLANES = 4  # of outputs that share the transformed planes of a volume
_MIN_CHANNELS, _MAX_CHANNELS, _MIN_ROWS = 16, 1024, 24
_MANY_CHANNELS = 256  # beyond them a transformed box of TILE_COLUMNS takes more than its share of the third level
_TRANSFORMS = 1.4  # time of everything over the time of the products, for a few dozen channels
_NS_PER_FLOP = 0.01

Array = npt.NDArray[Any]


class Winograd:
    """A correlation by tiles: a plan of tiles for each phase of the dilation, and the order of the taps.

    With taps e apart, outputs e apart depend on positions e apart alone: e · e images, each an ordinary convolution.
    """

    def __init__(self, correlation: Correlation) -> None:
        depth, height, width = correlation.axes
        planes, channels = len(depth.offsets), correlation.channels
        self.together = _together(depth)
        several = _by_planes(depth, self.together)
        least = TILE_COLUMNS if channels * planes <= _MANY_CHANNELS else TILE_COLUMNS // 2
        self.phases = [
            Correlation([several, h, w], channels, correlation.rows, correlation.groups, (planes, 6, 6), 4, flat=least)
            for h, w in itertools.product(_tiled(height), _tiled(width))
        ]
        by_offset = [np.argsort(axis.offsets) for axis in correlation.axes]
        order = np.arange(planes * 9).reshape(planes, 3, 3)[np.ix_(*by_offset)]
        self.taps = correlation.kernel_taps[order.reshape(-1)]
        self.kernel_size = correlation.kernel_size
        small = planes == depth.outputs == 1 and height.outputs * width.outputs <= _SMALL_OUTPUTS
        self.small = small and len(self.phases) == 1
        self.depth, self.outputs_d = planes, depth.outputs
        self.height, self.width = height.outputs, width.outputs
        vectors = sum(-(-_flat(tiles) // LANES) * tiles.boxes for tiles in self.phases)
        direct = -(-correlation.outputs // LANES) * 9
        self.pays = self.small or _TRANSFORMS * FREQUENCIES * vectors < direct

    def run(
        self, source: Array, w: Array, steps: tuple[int, int], b: Array | None, target: Array, relu: bool
    ) -> npt.NDArray[np.bool_]:
        """Fill `target`; returns for each sample whether one of its results is not finite."""
        tiles = self.phases[0]
        start = np.zeros((tiles.groups, tiles.blocks * ROWS), source.dtype)
        if b is not None:
            start[:, : tiles.rows] = b.reshape(tiles.groups, tiles.rows)
        not_finite = np.zeros(len(source), np.bool_)
        run = self._run_tiles if self.small else self._run_boxes
        run(flat(source), flat(w), steps, start, target.reshape(-1), relu, not_finite)
        return not_finite

    def _run_boxes(
        self, x: Array, w: Array, steps: tuple[int, int], start: Array, y: Array, relu: bool, not_finite: Array
    ) -> None:
        tiles, p = self.phases[0], self.phases[0].plan[0]
        count = int(p["channels"]) * self.depth
        filters = call_scratch(tiles.groups * tiles.blocks * FREQUENCIES * (count * ROWS + FILTER_PADDING), x.dtype)

        def transform(begin: int, end: int) -> None:
            transform_filters(w, filters, tiles.plan, self.taps, *steps, self.kernel_size, self.depth, 0, begin, end)

        parallel_for(transform, tiles.groups * tiles.blocks, filters.size)
        samples = len(not_finite)
        pieces = [samples * tiles.groups * tiles.boxes for tiles in self.phases]
        ends = list(itertools.accumulate(pieces))

        def call(begin: int, end: int) -> None:
            for tiles, first, after in zip(self.phases, [0, *ends], ends):
                low, high = max(begin, first) - first, min(end, after) - first
                if low < high:
                    self._boxes(tiles, x, filters, start, y, not_finite, relu, low, high)

        parallel_for(call, ends[-1], samples * sum(tiles.flops for tiles in self.phases) * _NS_PER_FLOP)

    def _boxes(
        self,
        tiles: Correlation,
        x: Array,
        filters: Array,
        start: Array,
        y: Array,
        not_finite: Array,
        relu: bool,
        begin: int,
        end: int,
    ) -> None:
        """Tasks of one phase of the dilation."""
        p = tiles.plan[0]
        _, height, width = (len(range(axis.first, axis.target, axis.stride)) for axis in tiles.axes)
        most = -(-_flat(tiles) // LANES) * LANES
        several = _several(most)
        shared = int(p["channels"] * p["planes"]) * most + STAGGER + several * (ROWS * most + STAGGER)
        memory = scratch(tiles.box_elements + most + FREQUENCIES * shared + VECTOR_OUTPUTS, x.dtype)
        winograd_boxes(
            x, filters, start, y, tiles.plan, tiles.tables, tiles.box_offsets, memory, not_finite, relu, self.depth,
            self.together, self.outputs_d, height, width, several, begin, end,
        )  # fmt: skip

    def _run_tiles(
        self, x: Array, w: Array, steps: tuple[int, int], start: Array, y: Array, relu: bool, not_finite: Array
    ) -> None:
        tiles, samples = self.phases[0], len(not_finite)
        channels = tiles.channels
        total = samples * tiles.outputs
        several = _several(TILE_COLUMNS)
        of_block = FREQUENCIES * (ROWS * (channels + TILE_COLUMNS) + FILTER_PADDING + STAGGER)
        elements = several * of_block + VECTOR_OUTPUTS
        for first in range(0, total, TILE_COLUMNS):
            columns = -(-min(TILE_COLUMNS, total - first) // LANES) * LANES
            index, masks = np.empty(columns, np.int64), np.empty((columns // LANES, FREQUENCIES), np.int64)
            tile_tables(tiles.plan, samples, first, index, masks)
            transformed = call_scratch(FREQUENCIES * (channels * columns + STAGGER), x.dtype)
            for group in range(tiles.groups):
                inputs = partial(transform_tiles, x, transformed, tiles.plan, index, masks, group)
                parallel_for(inputs, channels, 20.0 * channels * columns)

                fixed = (w, transformed, start, y, tiles.plan, self.taps)
                sizes = (self.height, self.width, samples, first, columns, group, *steps, several)

                def call(begin: int, end: int, fixed: Any = fixed, sizes: Any = sizes) -> None:
                    memory = scratch(elements, x.dtype)
                    winograd_tiles(*fixed, memory, not_finite, relu, *sizes, begin, end)

                parallel_for(call, tiles.blocks, 2 * FREQUENCIES * channels * tiles.rows * columns * _NS_PER_FLOP)


def _tiled(axis: Axis) -> list[Axis]:
    """The axes of the tiles, one for each phase of the dilation: a tile reads six positions and moves on by four."""
    apart = _spacing(axis)
    axes = []
    for phase in range(min(apart, axis.outputs)):
        tiles = -(-len(range(phase, axis.outputs, apart)) // OUTPUTS)
        offsets = tuple(axis.low + phase + i * apart for i in range(6))
        axes.append(Axis(axis.size, tiles, OUTPUTS * apart, offsets, tuple(range(6)), phase, apart, axis.target))
    return axes


def _together(depth: Axis) -> int:
    """How many planes of outputs to compute together: neighbours share most of their transformed planes."""
    neighbours = depth.step == 1 and max(depth.offsets) - min(depth.offsets) == len(depth.offsets) - 1 > 0
    return min(_PLANES, depth.outputs) if neighbours else 1


def _by_planes(depth: Axis, together: int) -> Axis:
    """The axis whose step takes `together` planes of outputs, with the planes of the source that all of them read."""
    offsets = tuple(sorted(depth.offsets))
    gathered = (*offsets, *range(offsets[-1] + 1, offsets[-1] + together))
    taps, outputs = tuple(range(len(gathered))), -(-depth.outputs // together)
    return Axis(depth.size, outputs, together * depth.step, gathered, taps, depth.first, depth.stride, depth.target)


def _several(columns: int) -> int:
    """Blocks of rows whose products of that many columns take half the second level: they read the tiles together."""
    return max(1, SECOND_LEVEL_BYTES // 2 // (4 * FREQUENCIES * ROWS * columns))


def _flat(tiles: Correlation) -> int:
    """Tiles computed for a full box, waste between its rows included."""
    p = tiles.plan[0]
    return int((p["box_h"] - 1) * p["pitch"] + p["box_w"])


def _spacing(axis: Axis) -> int:
    """How far apart the three taps of an axis lie, 0 if they are not three at equal distances."""
    offsets = sorted(axis.offsets)
    if len(offsets) != 3 or offsets[1] - offsets[0] != offsets[2] - offsets[1]:
        return 0
    return offsets[1] - offsets[0]


def suits(correlation: Correlation) -> bool:
    """Three equidistant taps on the last two axes at step 1, and channels enough to pay for the transforms.

    The upper bound on channels keeps the rounding error below the 1e-5 of the default precision.
    """
    depth, height, width = correlation.axes
    three = all(axis.step == axis.stride == 1 and _spacing(axis) for axis in (height, width))
    channels = correlation.channels * len(depth.offsets)
    return three and _MIN_CHANNELS <= channels <= _MAX_CHANNELS and correlation.rows >= _MIN_ROWS
