"""Winograd's tiles of large images, in boxes; the kernels and the idea are in winograd_box_kernels.py."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.estimates import SAMPLES, Bill, add, cost, gather_bill
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, flat
from fastconv.backends.cpu.plan import Correlation
from fastconv.backends.cpu.scratch import ALIGNED, call_scratch, scratch_rows
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.winograd_box_kernels import BOXES, CHANNELS, NUMBERS, PHASE, winograd_boxes
from fastconv.backends.cpu.winograd_forms import (
    Form,
    axes_of,
    form_of,
    frequencies_of,
    outputs_of,
    patch_of,
    phase_of,
    phases_of,
    products_of,
    spread_of,
)
from fastconv.backends.cpu.winograd_kernels import (
    FILTER_PADDING,
    LANES,
    STAGGER,
    TILE_COLUMNS,
    block_biases,
    several_blocks,
    taps_in_order,
    transform_filters,
)
from fastconv.backends.cpu.winograd_matrices import OUTPUTS
from fastconv.backends.cpu.winograd_spread import Spread, reversed_taps
from fastconv.backends.threads import get_num_threads, is_little, share, team_for

_PLANES = 4  # of outputs that share the transformed planes of a volume
_MANY_CHANNELS = 256  # beyond them a transformed box of TILE_COLUMNS takes more than its share of the third level
_TRANSFORMED_BYTES = SECOND_LEVEL_BYTES * 3 // 4  # of a box of more columns than TILE_COLUMNS
_NS_PER_ELEMENT = 1.5  # of transformed filters
_MANY_BOXES = 4  # for each thread: the wait for those who take the last boxes is short then

SHARED_NS = 20_000
"""What it costs to share a box, in nanoseconds: the threads wait for each other twice more."""

Array = npt.NDArray[Any]


class _Phase:
    """The tiles of one phase of the dilation, and what their boxes take of the scratch, worked out once."""

    def __init__(self, tiles: Correlation, form: Form, together: int) -> None:
        self.tiles = tiles
        p = tiles.plan[0]
        frequencies = frequencies_of(form)
        _, self.height, self.width = (len(range(axis.first, axis.target, axis.stride)) for axis in tiles.axes)
        self.numbers = tiles.blocks * together
        """Blocks of rows times planes of outputs that a box computes."""
        # Of a full box in whole vectors, the waste between its rows included.
        columns = -(-int((p["box_h"] - 1) * p["pitch"] + p["box_w"]) // LANES) * LANES
        self.transformed = frequencies * (phases_of(form) * tiles.channels * int(p["planes"]) * columns + STAGGER)
        spread = spread_of(form)
        self.several = max(1, several_blocks(frequencies, columns) // spread) * spread
        products = self.several * frequencies * (ROWS * columns + STAGGER)
        results = LANES * (1 + math.prod(outputs_of(form)))
        self.work = -(-(products + results + tiles.box_elements + columns) // ALIGNED) * ALIGNED
        """Elements in front of a transformed box."""


class Boxes:
    """A correlation by tiles: a plan of tiles for each phase of the dilation, and the order of the taps.

    With taps e apart, outputs e apart depend on positions e apart alone: e · e images, each an ordinary convolution.
    """

    def __init__(self, correlation: Correlation, spread: tuple[Spread, Spread] | None = None, parts: int = 1) -> None:
        """With `spread`: all phases of a strided input gradient in height and width; `correlation` is any of them.

        A plane is cut into boxes as is best, or into at least so many `parts`.
        """
        self.correlation, self.spread_axes, self.parts = correlation, spread, parts
        depth, height, width = correlation.axes
        planes, channels = len(depth.offsets), correlation.channels
        if spread:
            self.form = form_of((spread[0].taps, spread[1].taps), spread=(spread[0].step, spread[1].step))
            axes = [(spread[0].tiles, spread[1].tiles)]
            self.taps = reversed_taps(correlation)
        else:
            taps = len(height.offsets), len(width.offsets)
            self.form = form_of(taps, steps=(height.step, width.step))
            axes = list(itertools.product(tiled(height), tiled(width)))
            self.taps = taps_in_order(correlation)
        phases, self.spread = phases_of(self.form), spread_of(self.form)
        self.together = _together(depth) if phases == self.spread == 1 else 1
        several = _by_planes(depth, self.together)
        summed = phases * channels
        least = TILE_COLUMNS if summed * planes <= _MANY_CHANNELS else TILE_COLUMNS // 2
        self.frequencies = frequencies_of(self.form)
        fitting = _TRANSFORMED_BYTES // (4 * self.frequencies * summed * len(several.offsets))
        least = max(least, min(fitting, 2 * TILE_COLUMNS))
        kernel = planes, *patch_of(self.form)
        by_phase = [
            Correlation(
                [several, h, w], channels, correlation.rows, correlation.groups, kernel, 4, flat=least, parts=parts
            )
            for h, w in axes
        ]
        self.tiles = by_phase[0]
        """Of the first phase; channels, rows and groups are those of all."""
        self.phases = [_Phase(tiles, self.form, self.together) for tiles in by_phase]
        self.ends = list(itertools.accumulate(tiles.groups * tiles.boxes for tiles in by_phase))
        """How many boxes a sample has in each phase and those before."""
        self.plans = np.concatenate([tiles.plan for tiles in by_phase])
        self.tables = np.concatenate([tiles.tables for tiles in by_phase])
        self.offsets = np.concatenate([_by_step(tiles.box_offsets, self.form) for tiles in by_phase])
        self.numbers = self._numbers()
        self.transformed = max(phase.transformed for phase in self.phases)
        self.elements = max(phase.work + phase.transformed for phase in self.phases)
        of_block = self.spread * self.frequencies * (summed * planes * ROWS + FILTER_PADDING)
        self.filters = -(-self.tiles.groups * self.tiles.blocks * of_block // ALIGNED) * ALIGNED
        """Elements of the transformed filters."""
        self.kernel_size = correlation.kernel_size
        self.depth, self.outputs_d = planes, depth.outputs
        self.gathered = (planes + self.together - 1) / self.together / planes
        """Planes that are transformed over those that are multiplied."""
        bill = self.bill(SAMPLES)
        del bill["tiled box filter"]
        time = cost(bill)
        later = {thing: count for thing, count in bill.items() if "product" in thing or "output" in thing}
        self.inputs = 1 - cost(later) / time
        """The part of the time that goes into gathering and transforming the inputs."""
        self.cost = self.tiles.groups * time
        """Nanoseconds for a sample, but for the filters."""

    def bill(self, samples: int) -> Bill:
        """What is done for each of so many samples, see estimates.py."""
        channels, blocks = self.tiles.channels * self.depth, self.tiles.blocks
        tiles = self.outputs_d * sum(phase.tiles.box_vectors() for phase in self.phases)
        inputs, products = (tiles * math.prod(count) for count in (patch_of(self.form), products_of(self.form)))
        results = products if self.spread > 1 else self.frequencies * tiles
        axes = axes_of(self.form)
        boxes = self.ends[-1] / self.tiles.groups
        bill: Bill = {}
        for phase in self.phases:
            add(bill, gather_bill(phase.tiles, "tiled box"))
        bill |= {
            "tiled box product": products * blocks * ROWS * channels,
            f"tiled box input, axes {axes}": inputs * channels * self.gathered,
            f"tiled box output, axes {axes}": results * self.tiles.rows,
            "tiled box filter": math.prod(products_of(self.form)) * channels * blocks / samples,
        }
        if self.depth > 1:
            bill["tiled box product, planes"] = bill["tiled box product"]
            bill["tiled box input, planes"] = inputs * channels * self.gathered
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
        tiles, samples, threads = self.tiles, len(source), get_num_threads()
        boxes = samples * self.ends[-1]
        of_box = samples * self.cost / boxes
        # Boxes that not all threads find one of may be smaller, or shared: the others would wait for those who have.
        shared = boxes % threads if boxes < _MANY_BOXES * threads else 0
        time_of_shared = shared * (of_box / threads + SHARED_NS)
        if shared and self.parts == 1 and not is_little(samples * self.cost):
            finer = _in_parts(self, self._parts(boxes, threads))
            if finer.time(samples, threads) < boxes // threads * of_box + min(of_box, time_of_shared):
                return finer.run(source, w, steps, b, target, relu)
        if time_of_shared >= of_box:
            shared = 0
        not_finite = np.zeros(samples, np.bool_)
        x, w, y, start = flat(source), flat(w), target.reshape(-1), block_biases(tiles, b, source.dtype)
        memory = call_scratch(self.filters + (self.transformed if shared else 0), x.dtype)
        filters, transformed = memory[: self.filters], memory[self.filters :]
        arguments = self.form, w, filters, tiles.plan, self.taps, *steps, self.kernel_size, self.depth
        share(transform_filters, arguments, tiles.groups * tiles.blocks, self.filters * _NS_PER_ELEMENT)
        arrays = x, filters, start, y, transformed, not_finite
        if boxes > shared:
            self._boxes(arrays, relu, 0, BOXES, 0, boxes - shared, of_box * (boxes - shared))
        for box in range(boxes - shared, boxes):  # all channels are transformed before any result is computed
            n = bisect_right(self.ends, box // samples)
            number = box - samples * (self.ends[n - 1] if n else 0)
            self._boxes(arrays, relu, n, CHANNELS, number, tiles.channels, self.inputs * of_box)
            self._boxes(arrays, relu, n, NUMBERS, number, self.phases[n].numbers, (1 - self.inputs) * of_box)
        return not_finite

    def _parts(self, boxes: int, threads: int) -> int:
        """Parts of a plane, more than there are, of which threads find equally many."""
        plan = self.tiles.plan[0]
        rows = int(plan["boxes_h"] if plan["outputs_h"] > 1 else plan["boxes_w"])
        even = threads // math.gcd(boxes // rows, threads)
        return (rows // even + 1) * even

    def time(self, samples: int, threads: int) -> float:
        """Nanoseconds of so many samples, if no thread helps another with its boxes."""
        boxes = samples * self.ends[-1]
        return samples * self.cost / boxes * -(-boxes // threads)

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


@lru_cache(maxsize=1024)
def _in_parts(boxes: Boxes, parts: int) -> Boxes:
    """The same in smaller boxes, for threads that would find too few."""
    return Boxes(boxes.correlation, boxes.spread_axes, parts)


def tiled(axis: Axis) -> list[Axis]:
    """The axes of the tiles, one for each phase of the dilation: a tile reads a patch and moves on by its outputs."""
    if len(axis.offsets) == 1:
        return [replace(axis, taps=(0,))]
    apart = axis.spacing
    positions = range(len(axis.offsets) + (OUTPUTS - 1) * axis.step)
    axes = []
    for phase in range(min(apart, axis.outputs)):
        tiles, step = -(-len(range(phase, axis.outputs, apart)) // OUTPUTS), OUTPUTS * apart * axis.step
        offsets = tuple(axis.low + phase + i * apart for i in positions)
        axes.append(Axis(axis.size, tiles, step, offsets, tuple(positions), phase, apart, axis.target))
    return axes


def _by_step(offsets: npt.NDArray[np.int64], form: Form) -> npt.NDArray[np.int64]:
    """The positions of each patch by the phases of the steps, in whose order they are transformed."""
    if phases_of(form) == 1:
        return offsets
    steps = [len(axis[2]) for axis in form]
    patches = offsets.reshape(-1, *patch_of(form))
    found = (phase_of(form, number) for number in range(phases_of(form)))
    phases = [patches[:, h :: steps[0], w :: steps[1]].reshape(len(patches), -1) for h, w, _ in found]
    return np.concatenate(phases, axis=1).reshape(-1)


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
