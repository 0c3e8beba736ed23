"""Depthwise weight gradient with channels in the lanes: dw[tap] = Σ over outputs of gy[output] · x[output + tap].

Idea: boxes of x and gy are transposed to [position][channel] as in depthwise_lanes.py. Every lane then sums its own
channel: a tile of taps, one vector each, stays in registers while the outputs pass by, and nothing is summed over lanes
or masked. Only outputs are in the sum: nothing between rows is multiplied.

Loop order: slice of units → lanes of channels → unit (sample and box) → output channel of the group → strip of rows →
tile of taps → row → column. Registers hold the tile of taps, the first-level cache a strip of x and gy, which all tiles
of taps read, the second level the box. Cost: one FMA and little more than one load for each tap and vector of outputs.
Floor: the traffic for 3×3, the FMA rate for 7×7.

A slice of units has a partial gradient, units are added to it in order, the slices in order: a matter of shapes alone.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.depthwise_lanes import (
    MOST_BYTES,
    MOST_SHARED,
    LaneBoxes,
    PhasedAxis,
    aligned,
    clear_padding,
    fills_lanes,
    gather_lanes,
)
from fastconv.backends.cpu.depthwise_lanes_simd import SUM_TILES, tap_sums, to_lanes
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import zero_bytes
from fastconv.backends.cpu.host import VECTOR_BYTES, flat, pointer, routine
from fastconv.backends.cpu.plan import Correlation, even_part, forward_plan
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.cpu.team import shared
from fastconv.backends.cpu.weight_grad import slice_count
from fastconv.backends.threads import share, team_for
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_STRIP_BYTES = 24 * 1024  # of x and gy
_STRIP_OUTPUTS = 256  # of a strip at least: enough to pay for the loads and stores of a tile of taps
_TASKS = 32  # slices are made until there are as many tasks
_NS_PER_FLOP = 0.015
_NS_PER_ELEMENT = 0.3

_KINDS = {tile: number for number, tile in enumerate(SUM_TILES)}
_MOST_TAPS = max(taps for taps, _ in SUM_TILES)
_MOST_ROWS = dict(SUM_TILES)  # the last of each is the largest


class WeightGrad:
    """What is walked over: boxes of outputs, strips of their rows, tiles of taps."""

    def __init__(self, correlation: Correlation) -> None:
        self.correlation = c = correlation
        self.fits = not c.empty and c.channels == 1 and c.rows <= MOST_SHARED
        self.fits = self.fits and fills_lanes(c.groups, lanes_of(c.itemsize))
        if not self.fits:
            return
        width = c.axes[2]
        self.dilation = math.gcd(*(offset - width.low for offset in width.offsets)) or 1
        axes = [PhasedAxis([axis]) for axis in c.axes]
        self.boxes = boxes = LaneBoxes(axes, c.groups, 1, c.rows, self.dilation, c.itemsize)
        q = boxes.layout[0]
        self.gy_at = boxes.elements
        # Where outputs go that are gathered in one run: a row, or with a whole image all of them.
        run = c.outputs if q["image"] else int(q["box_w"])
        self.columns = np.arange(run + boxes.lanes) * boxes.lanes
        self.shift = self.dilation // math.gcd(self.dilation, width.step)
        self.blocks, self.sample = int(q["blocks"]), c.groups * math.prod(axis.size for axis in c.axes)
        self.elements = self.gy_at + int(q["box_d"] * q["box_h"] * q["box_w"] + boxes.lanes + 1) * boxes.lanes
        self.fits = self.elements * c.itemsize <= MOST_BYTES
        if self.fits:
            row, gy_row = (int(n) * boxes.lanes * c.itemsize for n in (q["row"] // boxes.lanes, q["box_w"]))
            height = axes[1]
            strip = (_STRIP_BYTES - height.halo * row) // (height.step * row + gy_row)
            q["finished"] = even_part(int(q["box_h"]), max(1, strip, _STRIP_OUTPUTS // int(q["box_w"])))
            self._tiles()

    def _tiles(self) -> None:
        """Tiles of taps (kind, where in `offsets` its rows begin, its first sum) and the tap of each sum."""
        depth, height, width = self.correlation.axes
        q = self.boxes.layout[0]
        lines = list(itertools.product(range(len(depth.offsets)), range(len(height.offsets))))
        offsets: list[int] = []
        tiles: list[tuple[int, int, int]] = []
        order: list[int] = []
        for first, taps in _runs(width, self.dilation):
            most = _MOST_ROWS[taps]
            for begin in range(0, len(lines), most):
                rows = lines[begin : begin + most]
                tiles.append((_KINDS[taps, len(rows)], len(offsets), len(order)))
                for d, h in rows:
                    place = (depth.offsets[d] - depth.low) * q["plane"] + (height.offsets[h] - height.low) * q["row"]
                    offsets.append(int(place + self.boxes.places[width.offsets[first] - width.low]))
                    line = (d * len(height.offsets) + h) * len(width.offsets) + first
                    order.extend(self.correlation.kernel_taps[line : line + taps])
        self.offsets, self.tiles, self.order = (np.array(a, dtype=np.int64) for a in (offsets, tiles, order))
        q["count"], q["kernel"] = len(order), self.correlation.kernel_size
        self.sums = self.blocks * self.correlation.rows * len(order) * self.boxes.lanes

    def run(self, gy: Array, x: Array, gw: Array) -> None:
        """Write the gradient to gw; all arrays of one axis."""
        layout, samples = self.boxes.layout, x.size // self.sample
        units = samples * self.boxes.boxes
        slices = slice_count(min(units, -(-_TASKS // self.blocks)), self.sums * x.itemsize)
        partial = call_scratch(slices * self.sums + self.boxes.lanes, x.dtype)
        tasks = slices * self.blocks
        cost = samples * self.correlation.flops * _NS_PER_FLOP + (x.size + gy.size) * _NS_PER_ELEMENT
        team = team_for(tasks, cost)
        weight_grad_lanes(
            gy, x, partial, layout, self.offsets, self.tiles, self.boxes.places, self.columns,
            scratch_rows(team.size, self.elements, x.dtype), self.gy_at, self.shift, units, slices, team.address, 0,
            tasks,
        )  # fmt: skip
        share(add_lanes, (partial, gw, layout, self.order, slices), self.blocks, slices * self.sums)


def _runs(width: Axis, dilation: int) -> list[tuple[int, int]]:
    """(first tap, taps) of neighbours, `dilation` apart, in parts that a tile can hold, about equally long."""
    ends = [n for n in range(1, len(width.offsets)) if width.offsets[n] - width.offsets[n - 1] != dilation]
    runs: list[tuple[int, int]] = []
    for first, last in zip([0, *ends], [*ends, len(width.offsets)]):
        part = even_part(last - first, _MOST_TAPS)
        runs.extend((n, min(part, last - n)) for n in range(first, last, part))
    return runs


@shared
def weight_grad_lanes(
    gy: Any, x: Any, partial: Any, layout: Any, offsets: Any, tiles: Any, places: Any, columns: Any, memory: Any,
    gy_at: int, shift: int, units: int, slices: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (slice of units, block of lanes); partial is [slice][block][row][sum][lane].

    Outputs `shift` columns apart read neighbouring places of the same phase of the dilation.
    """
    q = layout[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume, outputs = q.size_d * q.size_h * q.size_w, q.target_d * q.target_h * q.target_w
    box = aligned(memory[who])
    gy_box = box + gy_at * size
    one = q.rows * q.count * VECTOR_BYTES
    clear_padding(layout, box, size)
    for task in range(begin, end):
        s, block = divmod(task, q.blocks)
        sums = aligned(partial) + task * one
        zero_bytes(sums, one)
        for unit in range(units * s // slices, units * (s + 1) // slices):
            rest, box_w = divmod(unit, q.boxes_w)
            rest, box_h = divmod(rest, q.boxes_h)
            n, box_d = divmod(rest, q.boxes_d)
            d0, h0, w0 = box_d * q.box_d, box_h * q.box_h, box_w * q.box_w
            n_d, n_h, n_w = min(q.box_d, q.target_d - d0), min(q.box_h, q.target_h - h0), min(q.box_w, q.target_w - w0)
            group, valid = n * q.groups + block * lanes, min(lanes, q.groups - block * lanes)
            gather_lanes(x, group * volume, volume, valid, box, layout, places, d0, h0, w0, n_d, n_h, n_w)
            for m in range(q.rows):
                first = (group * q.rows + m) * outputs
                _gather_gy(gy, first, q.rows * outputs, valid, gy_box, layout, columns, d0, h0, w0, n_d, n_h, n_w)
                for d in range(n_d):
                    source, gradient = box + d * q.step_d * q.plane * size, gy_box + d * n_h * n_w * VECTOR_BYTES
                    _add_plane(
                        x, source, gradient, sums + m * q.count * VECTOR_BYTES, layout, offsets, tiles, places, shift,
                        n_h, n_w,
                    )  # fmt: skip


@routine
def _gather_gy(
    gy: Any, first: int, apart: int, valid: int, to: int, layout: Any, columns: Any, d0: int, h0: int, w0: int,
    n_d: int, n_h: int, n_w: int,
) -> None:  # fmt: skip
    """n_d × n_h × n_w outputs from (d0, h0, w0) on to address `to` as [plane][row][column][lane]."""
    q = layout[0]
    size = gy.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    if q.image:
        count, source = n_d * n_h * n_w, pointer(gy) + first * size
        to_lanes(gy, to, 0, pointer(columns), 0, count, source, apart, valid, 0, 1, count)
        return
    for d in range(n_d):
        source = pointer(gy) + (first + ((d0 + d) * q.target_h + h0) * q.target_w + w0) * size
        target = to + d * n_h * n_w * VECTOR_BYTES
        to_lanes(gy, target, n_w * lanes, pointer(columns), 0, n_w, source, apart, valid, q.target_w, n_h, n_w)


@routine
def _add_plane(
    like: Any, source: int, gy: int, sums: int, layout: Any, offsets: Any, tiles: Any, places: Any, shift: int,
    n_h: int, n_w: int,
) -> None:  # fmt: skip
    """sums += the products of one plane of outputs, a strip of `finished` rows at a time."""
    q = layout[0]
    size = like.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    # Outputs `shift` columns apart are a whole number of dilations apart in the source.
    step = places[shift * q.step_w] if shift < n_w else 0
    for h in range(0, n_h, q.finished):
        rows = min(q.finished, n_h - h)
        for column in range(min(shift, n_w)):
            from_ = source + (h * q.step_h * q.row + places[column * q.step_w]) * size
            gradient = gy + (h * n_w + column) * VECTOR_BYTES
            for t in range(len(tiles)):
                tap_sums(
                    like, tiles[t, 0], from_, pointer(offsets) + 8 * tiles[t, 1], q.step_h * q.row, step, gradient,
                    n_w * lanes, shift * lanes, rows, -(-(n_w - column) // shift), sums + tiles[t, 2] * VECTOR_BYTES,
                )  # fmt: skip


@shared
def add_lanes(partial: Any, gw: Any, layout: Any, order: Any, slices: int, who: int, begin: int, end: int) -> None:
    """gw[channel][tap] from the partial gradients of all slices, added in order; tasks are blocks of lanes."""
    q = layout[0]
    lanes = np.uintp(_LANES4 if gw.itemsize == 4 else _LANES8)
    first = np.uintp((aligned(partial) - pointer(partial)) // gw.itemsize)
    count, rows = np.uintp(q.count), np.uintp(q.rows)
    one = np.uintp(q.blocks) * rows * count * lanes
    for block in range(begin, end):
        for m in range(rows):
            at = first + (np.uintp(block) * rows + m) * count * lanes
            for lane in range(np.uintp(min(q.groups - block * lanes, lanes))):
                target = ((np.uintp(block) * lanes + lane) * rows + m) * np.uintp(q.kernel)
                for k in range(count):
                    total = partial[at + k * lanes + lane]
                    for s in range(np.uintp(1), np.uintp(slices)):
                        total += partial[at + k * lanes + lane + s * one]
                    gw[target + np.uintp(order[k])] = total


_weight_grad = lru_cache(maxsize=1024)(WeightGrad)


def suits(geometry: ConvGeometry, itemsize: int) -> bool:
    """Whether the geometry is a depthwise one whose channels fill the lanes."""
    return _weight_grad(forward_plan(geometry, itemsize)).fits


def weight_gradient(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """The whole weight gradient of a geometry that `suits`; see contract.Backend.conv_weight_grad."""
    plan = _weight_grad(forward_plan(geometry, x.itemsize))
    gw: Array = (np.empty if len(plan.order) == geometry.taps else np.zeros)(geometry.weight_shape, x.dtype)
    plan.run(flat(gy), flat(x), gw.reshape(-1))
    return gw
