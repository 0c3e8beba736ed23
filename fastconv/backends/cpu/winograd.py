"""When and how Winograd's tiles replace a correlation; the kernels and the idea are in winograd_kernels.py."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.estimates import SAMPLES, WINOGRAD_GAIN, Bill, cost
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, flat
from fastconv.backends.cpu.plan import TILE_VECTORS, Correlation
from fastconv.backends.cpu.scratch import ALIGNED, call_scratch, scratch_rows
from fastconv.backends.cpu.shift_gemm import direct_time
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.winograd_kernels import (
    BOXES,
    CHANNELS,
    FILTER_PADDING,
    LANES,
    NUMBERS,
    PHASE,
    STAGGER,
    TILE_COLUMNS,
    tile_tables,
    transform_filters,
    transform_tiles,
    winograd_boxes,
    winograd_tiles,
)
from fastconv.backends.cpu.winograd_matrices import MAX_CHANNELS, OUTPUTS, outputs, patch
from fastconv.backends.threads import get_num_threads, share, team_for

_SMALL_OUTPUTS = 400
_PLANES = 4  # of outputs that share the transformed planes of a volume
_MIN_CHANNELS, _MIN_ROWS = 8, 6

_MANY_CHANNELS = 256  # beyond them a transformed box of TILE_COLUMNS takes more than its share of the third level
_TRANSFORM = {1: 12, 2: 25}  # time to transform a frequency over that of a product with it, by the axes with taps
_NS_PER_FLOP = 0.015
_NS_PER_ELEMENT = 1.5  # of transformed filters
_MANY_BOXES = 4  # for each thread: the wait for those who take the last boxes is short then

SHARED_NS = 20_000
"""What it costs to share a box, in nanoseconds: the threads wait for each other twice more."""

Array = npt.NDArray[Any]


class _Phase:
    """The tiles of one phase of the dilation, and what their boxes take of the scratch, worked out once."""

    def __init__(self, tiles: Correlation, taps: tuple[int, int], together: int) -> None:
        self.tiles = tiles
        p = tiles.plan[0]
        frequencies = patch(taps[0]) * patch(taps[1])
        _, self.height, self.width = (len(range(axis.first, axis.target, axis.stride)) for axis in tiles.axes)
        self.numbers = tiles.blocks * together
        """Blocks of rows times planes of outputs that a box computes."""
        # Of a full box in whole vectors, the waste between its rows included.
        columns = -(-int((p["box_h"] - 1) * p["pitch"] + p["box_w"]) // LANES) * LANES
        self.transformed = frequencies * (tiles.channels * int(p["planes"]) * columns + STAGGER)
        self.several = _several(frequencies, columns)
        products = self.several * frequencies * (ROWS * columns + STAGGER)
        results = LANES * (1 + outputs(taps[0]) * outputs(taps[1]))
        self.work = -(-(products + results + tiles.box_elements + columns) // ALIGNED) * ALIGNED
        """Elements in front of a transformed box."""


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
        taps = len(height.offsets), len(width.offsets)
        self.form = tuple((0,) * count for count in taps)
        kernel = planes, patch(taps[0]), patch(taps[1])
        self.frequencies = kernel[1] * kernel[2]
        self.vector_outputs = outputs(taps[0]) * outputs(taps[1]) * LANES
        by_phase = [
            Correlation([several, h, w], channels, correlation.rows, correlation.groups, kernel, 4, flat=least)
            for h, w in itertools.product(tiled(height), tiled(width))
        ]
        self.tiles = by_phase[0]
        """Of the first phase; channels, rows and groups are those of all."""
        self.phases = [_Phase(tiles, taps, self.together) for tiles in by_phase]
        self.ends = list(itertools.accumulate(tiles.groups * tiles.boxes for tiles in by_phase))
        """How many boxes a sample has in each phase and those before."""
        self.plans = np.concatenate([tiles.plan for tiles in by_phase])
        self.tables = np.concatenate([tiles.tables for tiles in by_phase])
        self.offsets = np.concatenate([tiles.box_offsets for tiles in by_phase])
        self.numbers = self._numbers()
        self.transformed = max(phase.transformed for phase in self.phases)
        self.elements = max(phase.work + phase.transformed for phase in self.phases)
        of_block = self.frequencies * (channels * planes * ROWS + FILTER_PADDING)
        self.filters = -(-self.tiles.groups * self.tiles.blocks * of_block // ALIGNED) * ALIGNED
        """Elements of the transformed filters."""
        by_offset = [np.argsort(axis.offsets) for axis in correlation.axes]
        order = np.arange(planes * taps[0] * taps[1]).reshape(planes, *taps)[np.ix_(*by_offset)]
        self.taps = correlation.kernel_taps[order.reshape(-1)]
        self.kernel_size = correlation.kernel_size
        small = 1 not in taps and planes == depth.outputs == 1 and height.outputs * width.outputs <= _SMALL_OUTPUTS
        self.small = small and len(self.phases) == 1
        self.depth, self.outputs_d = planes, depth.outputs
        self.height, self.width = height.outputs, width.outputs
        self.gathered = (planes + self.together - 1) / self.together / planes
        """Planes that are transformed over those that are multiplied."""
        all_of_it = with_transforms(taps, correlation.rows, channels * planes, self.gathered)
        self.inputs = 1 - with_transforms(taps, correlation.rows, channels * planes, gathered=0) / all_of_it
        """The part of the time that goes into the transforms of the inputs."""
        self.pays = WINOGRAD_GAIN * cost(self.bill(SAMPLES)) < direct_time(correlation)
        self.cost = all_of_it * sum(tiles.flops for tiles in by_phase) * _NS_PER_FLOP

    def bill(self, samples: int) -> Bill:
        """What is done for each of so many samples, see estimates.py."""
        channels, blocks, frequencies = self.tiles.channels * self.depth, self.tiles.blocks, self.frequencies
        if self.small:
            vectors = frequencies * self.tiles.outputs / LANES
            panels = max(1 / samples, self.tiles.outputs / TILE_COLUMNS)
            return {
                "tiles product": vectors * blocks * channels * ROWS,
                "tiles tile": vectors * blocks / TILE_VECTORS,
                "tiles input": vectors * channels,
                "tiles output": vectors * blocks * ROWS,
                "tiles filter": frequencies * panels * channels * blocks,
                "tiles call": 1 / samples,
            }
        vectors = frequencies * self.outputs_d * sum(phase.tiles.box_vectors() for phase in self.phases)
        axes = sum(len(taps) > 1 for taps in self.form)
        boxes = self.ends[-1] / self.tiles.groups
        bill: Bill = {
            "tiled box product": vectors * blocks * ROWS * channels,
            f"tiled box input, axes {axes}": vectors * channels * self.gathered,
            f"tiled box output, axes {axes}": vectors * self.tiles.rows,
            "tiled box filter": frequencies * channels * blocks / samples,
            "tiled box": boxes,
        }
        if self.depth > 1:
            bill["tiled box product, planes"] = bill["tiled box product"]
            bill["tiled box input, planes"] = vectors * channels * self.gathered
            bill["tiled box, planes"] = boxes * self.together
        return bill

    def _numbers(self) -> npt.NDArray[Any]:
        """What `winograd_boxes` is told of each phase."""
        rows, tables, offsets = [], 0, 0
        for phase in self.phases:
            boxes = phase.tiles.groups * phase.tiles.boxes
            rows.append((boxes, tables, offsets, phase.height, phase.width, phase.several, phase.work))
            tables, offsets = tables + len(phase.tiles.tables), offsets + len(phase.tiles.box_offsets)
        return np.array(rows, PHASE)

    def run(
        self, source: Array, w: Array, steps: tuple[int, int], b: Array | None, target: Array, relu: bool
    ) -> npt.NDArray[np.bool_]:
        """Fill `target`; returns for each sample whether one of its results is not finite."""
        tiles = self.tiles
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
        tiles, samples, threads = self.tiles, len(not_finite), get_num_threads()
        boxes = samples * self.ends[-1]
        cost = samples * self.cost / boxes
        # Boxes that not all threads find one of may be shared: the others would wait for those who have.
        shared = boxes % threads if boxes < _MANY_BOXES * threads else 0
        if shared * (cost / threads + SHARED_NS) >= cost:
            shared = 0
        memory = call_scratch(self.filters + (self.transformed if shared else 0), x.dtype)
        filters, transformed = memory[: self.filters], memory[self.filters :]
        arguments = self.form, w, filters, tiles.plan, self.taps, *steps, self.kernel_size, self.depth
        share(transform_filters, arguments, tiles.groups * tiles.blocks, self.filters * _NS_PER_ELEMENT)
        arrays = x, filters, start, y, transformed, not_finite
        if boxes > shared:
            self._boxes(arrays, relu, 0, BOXES, 0, boxes - shared, cost * (boxes - shared))
        for box in range(boxes - shared, boxes):  # all channels are transformed before any result is computed
            n = bisect_right(self.ends, box // samples)
            number = box - samples * (self.ends[n - 1] if n else 0)
            self._boxes(arrays, relu, n, CHANNELS, number, tiles.channels, self.inputs * cost)
            self._boxes(arrays, relu, n, NUMBERS, number, self.phases[n].numbers, (1 - self.inputs) * cost)

    def _boxes(
        self, arrays: tuple[Array, ...], relu: bool, phase: int, unit: int, box: int, tasks: int, cost: float
    ) -> None:
        """The first boxes of all, or a step of one box of one phase of the dilation by all threads."""
        x, filters, start, y, transformed, not_finite = arrays
        team = team_for(tasks, cost)
        memory = scratch_rows(team.size, self.elements, x.dtype)
        winograd_boxes(
            self.form, x, filters, start, y, self.plans, self.tables, self.offsets, self.numbers, memory, transformed,
            not_finite, relu, self.depth, self.together, self.outputs_d, phase, unit, box, team.address, 0, tasks,
        )  # fmt: skip

    def _run_tiles(
        self, x: Array, w: Array, steps: tuple[int, int], start: Array, y: Array, relu: bool, not_finite: Array
    ) -> None:
        tiles, samples = self.tiles, len(not_finite)
        channels = tiles.channels
        total = samples * tiles.outputs
        several = _several(self.frequencies, TILE_COLUMNS)
        of_block = self.frequencies * (ROWS * (channels + TILE_COLUMNS) + FILTER_PADDING + STAGGER)
        elements = several * of_block + TILE_COLUMNS + self.vector_outputs
        for first in range(0, total, TILE_COLUMNS):
            columns = -(-min(TILE_COLUMNS, total - first) // LANES) * LANES
            index, masks = np.empty(columns, np.int64), np.empty((columns // LANES, self.frequencies), np.int64)
            tile_tables(*map(len, self.form), tiles.plan, samples, first, index, masks)
            transformed = call_scratch(self.frequencies * (channels * columns + STAGGER), x.dtype)
            flops = 2 * self.frequencies * channels * tiles.rows * columns
            for group in range(tiles.groups):
                inputs = self.form, x, transformed, tiles.plan, index, masks, group
                share(transform_tiles, inputs, channels, 20.0 * channels * columns)
                team = team_for(tiles.blocks, flops * _NS_PER_FLOP)
                winograd_tiles(
                    self.form, w, transformed, start, y, tiles.plan, self.taps,
                    scratch_rows(team.size, elements, x.dtype), not_finite, relu, self.height, self.width, samples,
                    first, columns, group, *steps, self.kernel_size, several, team.address, 0, tiles.blocks,
                )  # fmt: skip


def tiled(axis: Axis) -> list[Axis]:
    """The axes of the tiles, one for each phase of the dilation: a tile reads a patch and moves on by its outputs."""
    if len(axis.offsets) == 1:
        return [replace(axis, taps=(0,))]
    apart = _spacing(axis)
    positions = range(patch(len(axis.offsets)))
    axes = []
    for phase in range(min(apart, axis.outputs)):
        tiles = -(-len(range(phase, axis.outputs, apart)) // OUTPUTS)
        offsets = tuple(axis.low + phase + i * apart for i in positions)
        axes.append(Axis(axis.size, tiles, OUTPUTS * apart, offsets, tuple(positions), phase, apart, axis.target))
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


def _several(frequencies: int, columns: int) -> int:
    """Blocks of rows whose products of so many columns take half the second level: they read the tiles together."""
    return max(1, SECOND_LEVEL_BYTES // 2 // (4 * frequencies * ROWS * columns))


def with_transforms(taps: tuple[int, int], rows: int, terms: int, gathered: float = 1.0) -> float:
    """Time of all over that of the products, of so many terms each; of these a part `gathered` is transformed."""
    return 1 + _TRANSFORM[sum(t > 1 for t in taps)] * (gathered / rows + 1 / terms)


def _spacing(axis: Axis) -> int:
    """How far apart the taps of an axis lie, 0 if not at equal distances."""
    distances = {b - a for a, b in itertools.pairwise(sorted(axis.offsets))}
    return distances.pop() if len(distances) == 1 else 0


def suits(correlation: Correlation) -> bool:
    """Taps of one of the forms on the last two axes at step 1, and channels enough to pay for the transforms.

    Dilated taps of one axis do not pay: to take their phases apart, and to store them, costs more than is saved.
    """
    depth, height, width = correlation.axes
    at_step_one = all(axis.step == axis.stride == 1 for axis in (height, width))
    tapped = [axis for axis in (height, width) if len(axis.offsets) > 1]
    apart = all(map(_spacing, tapped)) if len(tapped) == 2 else [_spacing(axis) for axis in tapped] == [1]
    form = tuple(len(axis.offsets) for axis in tapped)
    channels = correlation.channels * len(depth.offsets)
    enough = _MIN_CHANNELS <= channels <= MAX_CHANNELS.get(form, 0) and correlation.rows >= _MIN_ROWS
    return at_step_one and apart and enough
