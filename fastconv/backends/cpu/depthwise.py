"""Depthwise convolution of few channels: one source channel and few output rows in a group, swept row by row.

Idea: with one channel there is nothing to share between channels, so the shared operand is the input row: for each
shift along the row it is loaded once and serves all output rows of the tile that it reaches (`sweep` in
depthwise_simd.py). Output rows of a tile lie one dilation apart, so that this holds for dilated kernels as well.

Loop order: box (a run of planes and rows of one channel) → output channel of the group → plane → block of rows → tile
of columns → input row (in a table) → shift. Registers hold the tile, the first-level cache the taps and mostly the
gathered box, [plane][row][phase of the column][pitch] with its padding; each source element is gathered once per box,
and phases of a stride along the row are taken apart there. Rows and planes need no phases: the table skips. The next
channel's source and the tile's target lines are asked for while a tile is computed; without that a large 3×3
takes a third longer. Tiles of a strided target (input gradient) go through scratch.

Floor: the source and target traffic for 3×3, the FMA rate for 7×7. The same chain of FMAs for each output as the
shift-GEMM: results agree bit by bit.
Where the channels fill the lanes of a vector depthwise_lanes.py is faster.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.depthwise_simd import ENTRY, prefetch_lines, ranges, spread_row, sweep
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_strided, zero_bytes
from fastconv.backends.cpu.gather_simd import split_rows
from fastconv.backends.cpu.host import LINE_BYTES, REGISTERS, pointer, routine
from fastconv.backends.cpu.plan import Correlation, even_part
from fastconv.backends.cpu.scratch import scratch_rows
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import team_for

Array = npt.NDArray[Any]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_ROWS, _NARROW_ROWS = 4, 8  # of a tile of two or four vectors, and of one vector: enough chains to hide the latency
_VECTORS = 4 if REGISTERS == 32 else 2
_TILE = 16 * _LANES4  # scratch in front of the box for a tile that is stored by elements; behind it for reading on

MOST_ROWS = 4
"""Output channels of a group up to which their taps, not the sharing of the source between them, decide the speed."""

BOX_BYTES = 128 * 1024
"""Gathered source of a box: a second-level cache holds it with the target beside it."""

_NS_PER_FLOP = 0.015
_NS_PER_ELEMENT = 0.3

_FIELDS = "box_d box_h boxes_d boxes_h low_d low_h low_w halo_d halo_h pitch row plane delta count lines".split()
_LAYOUT = np.dtype([(name, np.int64) for name in _FIELDS])


class Depthwise:
    """What the sweep adds to a correlation: boxes, blocks of rows, and for each size of a block its input rows."""

    def __init__(self, correlation: Correlation) -> None:
        self.correlation = correlation
        depth, height, width = correlation.axes
        self.fits = correlation.channels == 1 and correlation.rows <= MOST_ROWS
        self.fits = self.fits and height.outputs > 1
        if not self.fits:
            return
        lanes, itemsize = lanes_of(correlation.itemsize), correlation.itemsize
        self.layout = np.zeros(1, _LAYOUT)
        layout = self.layout[0]
        layout["pitch"] = pitch = -(-(width.outputs + width.halo) // lanes) * lanes
        layout["row"] = width.step * pitch
        layout["low_d"], layout["low_h"], layout["low_w"] = depth.low, height.low, width.low
        layout["halo_d"], layout["halo_h"] = (max(a.offsets) - a.low for a in (depth, height))
        layout["delta"], layout["count"] = _distance(height), len(correlation.kernel_taps)
        self.block_rows = _NARROW_ROWS if width.outputs <= lanes else _ROWS
        self._boxes(BOX_BYTES // itemsize)
        layout["plane"] = ((int(layout["box_h"]) - 1) * height.step + int(layout["halo_h"]) + 1) * layout["row"]
        planes = (int(layout["box_d"]) - 1) * depth.step + int(layout["halo_d"]) + 1
        self.elements = planes * int(layout["plane"])
        self.fits = self.elements * itemsize <= 4 * BOX_BYTES
        if self.fits:
            self._tables(lanes)

    def _tables(self, lanes: int) -> None:
        """What the kernel walks over: blocks of rows of each kind of box, tiles of columns, input rows, shifts."""
        depth, height, width = self.correlation.axes
        layout = self.layout[0]
        self.shifts = np.array([_shift(width, o, int(layout["pitch"])) for o in width.offsets], dtype=np.int64)
        tables = [_entries(self.correlation, n, layout) for n in range(1, self.block_rows + 1)]
        self.entries = np.array([entry for table in tables for entry in table], dtype=np.int64)
        self.heads = np.cumsum([0, 0, *map(len, tables)], dtype=np.int64)
        box_d, box_h = int(layout["box_d"]), int(layout["box_h"])
        last_d = depth.outputs - (int(layout["boxes_d"]) - 1) * box_d
        last_h = height.outputs - (int(layout["boxes_h"]) - 1) * box_h
        kinds = [list(self._blocks(n_d, n_h)) for n_d, n_h in itertools.product((box_d, last_d), (box_h, last_h))]
        self.blocks = np.array([block for kind in kinds for block in kind], dtype=np.int64)
        self.parts = np.cumsum([0, *map(len, kinds)], dtype=np.int64)
        source_bytes = depth.size * height.size * width.size * self.correlation.itemsize
        layout["lines"] = -(-source_bytes // (LINE_BYTES * self.correlation.rows * len(kinds[0])))
        self.tiles = np.array(list(_tiles(width.outputs, lanes)), dtype=np.int64)

    def _blocks(self, n_d: int, n_h: int) -> Iterator[tuple[int, int, int]]:
        """Blocks of rows of a box: (where the source begins, the target relative to the box, rows)."""
        depth, height, width = self.correlation.axes
        layout = self.layout[0]
        plane, row, delta = int(layout["plane"]), int(layout["row"]), int(layout["delta"])
        for d in range(n_d):
            for residue in range(min(delta, n_h)):
                rows = -((residue - n_h) // delta)
                count = -(-rows // self.block_rows)
                for block in range(count):
                    first, last = rows * block // count, rows * (block + 1) // count
                    h = residue + first * delta
                    to = (d * depth.stride * height.target + h * height.stride) * width.target
                    yield d * depth.step * plane + h * height.step * row, to, last - first

    def _boxes(self, available: int) -> None:
        """Whole planes in a box as long as they fit, else rows of one plane."""
        depth, height, _ = self.correlation.axes
        layout = self.layout[0]
        row = int(layout["row"])
        halo_d, halo_h = int(layout["halo_d"]) + 1, int(layout["halo_h"]) + 1
        plane = ((height.outputs - 1) * height.step + halo_h) * row
        fitting = (available // plane - halo_d) // depth.step + 1
        if fitting >= min(depth.outputs, halo_d):
            layout["box_d"], layout["box_h"] = even_part(depth.outputs, fitting), height.outputs
        else:
            rows = (available // (halo_d * row) - halo_h) // height.step + 1
            block = self.block_rows * int(layout["delta"])
            rows = even_part(height.outputs, max(rows, block))
            layout["box_d"], layout["box_h"] = 1, min(height.outputs, -(-rows // block) * block)
        layout["boxes_d"] = -(-depth.outputs // int(layout["box_d"]))
        layout["boxes_h"] = -(-height.outputs // int(layout["box_h"]))

    def run(self, source: Array, w: Array, b: Array | None, target: Array, relu: bool) -> None:
        """Write the correlation of `source` with w into its part of `target`; all arrays of one axis."""
        c, layout = self.correlation, self.layout[0]
        rows = c.groups * c.rows
        taps = w
        if not np.array_equal(c.kernel_taps, np.arange(c.kernel_size)):
            taps = w.reshape(rows, c.kernel_size).take(c.kernel_taps, axis=1).reshape(-1)
        start = np.zeros(rows, source.dtype) if b is None else b
        samples = source.size // (c.groups * math.prod(axis.size for axis in c.axes))
        tasks = samples * c.groups * int(layout["boxes_d"]) * int(layout["boxes_h"])
        team = team_for(tasks, samples * c.flops * _NS_PER_FLOP + (source.size + target.size) * _NS_PER_ELEMENT)
        memory = scratch_rows(team.size, self.elements + 2 * _TILE, source.dtype)
        correlate_rows(
            source, taps, start, target, c.plan, self.layout, self.entries, self.heads, self.blocks, self.parts,
            self.tiles, self.shifts, memory, relu, team.address, 0, tasks,
        )  # fmt: skip


def _distance(height: Axis) -> int:
    """How far apart the output rows of a tile lie that read the same input rows."""
    apart = abs(height.offsets[1] - height.offsets[0]) if len(height.offsets) > 1 else 1
    return apart // math.gcd(apart, height.step)


def _shift(width: Axis, offset: int, pitch: int) -> int:
    """Where in a gathered row the tap at `offset` finds the source of output 0."""
    position, phase = divmod(offset - width.low, width.step)
    return phase * pitch + position


def _tiles(columns: int, lanes: int) -> Iterator[tuple[int, int, int]]:
    """Tiles of a row: (first column, vectors, columns stored)."""
    column = 0
    while column < columns:
        left = -(-(columns - column) // lanes)
        vectors = 4 if left >= 4 and _VECTORS == 4 else min(left, 2)
        yield column, vectors, min(columns - column, vectors * lanes)
        column += vectors * lanes


def _entries(correlation: Correlation, rows: int, layout: Any) -> list[list[int]]:
    """The table of `sweep` for a block of `rows` output rows: input rows in the order of the taps of every output."""
    depth, height, width = correlation.axes
    delta, row, plane = int(layout["delta"]), int(layout["row"]), int(layout["plane"])
    readers: dict[int, list[tuple[int, int]]] = {}
    for m in range(rows):
        for h, offset in enumerate(height.offsets):
            readers.setdefault(m * delta * height.step + offset - height.low, []).append((m, h))
    descending = len(height.offsets) > 1 and height.offsets[1] < height.offsets[0]
    codes = {pair: number for number, pair in enumerate(ranges(rows))}
    table = []
    for d, offset_d in enumerate(depth.offsets):
        for position in sorted(readers, reverse=descending):
            for first, count, h, step in _runs(readers[position]):
                at = (d * len(height.offsets) + h) * len(width.offsets)
                source = (offset_d - depth.low) * plane + position * row
                table.append([codes[first, count], source, at, step * len(width.offsets)])
    return table


def _runs(readers: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """(first row, rows, its row of taps, step to the next's) of neighbours whose rows of taps are evenly apart."""
    runs: list[tuple[int, int, int, int]] = []
    for m, h in readers:
        if runs:
            first, count, h0, step = runs[-1]
            if m == first + count and (count == 1 or h == h0 + count * step):
                runs[-1] = (first, count + 1, h0, h - h0 if count == 1 else step)
                continue
        runs.append((m, 1, h, 0))
    return runs


@routine
def _gather(x: Any, base: int, scratch: Any, plan: Any, layout: Any, d0: int, h0: int, n_d: int, n_h: int) -> None:
    """Copy the source of n_d planes of n_h rows of outputs from (d0, h0) on into scratch[_TILE:], padding included."""
    p, q = plan[0], layout[0]
    size = x.itemsize
    first_row, rows = h0 * p.step_h + q.low_h, (n_h - 1) * p.step_h + q.halo_h + 1
    above = min(rows, max(0, -first_row))
    below = min(rows, max(above, p.height - first_row))
    for i in range((n_d - 1) * p.step_d + q.halo_d + 1):
        z = d0 * p.step_d + q.low_d + i
        at = _TILE + i * q.plane
        target = pointer(scratch) + at * size
        if z < 0 or z >= p.depth or below == above:
            zero_bytes(target, rows * q.row * size)
            continue
        zero_bytes(target, above * q.row * size)
        zero_bytes(target + below * q.row * size, (rows - below) * q.row * size)
        at += above * q.row
        target += above * q.row * size
        begin = base + (z * p.height + first_row + above) * p.width
        source = pointer(x) + (begin + q.low_w) * size
        first, last, count = -q.low_w, p.width - q.low_w, below - above
        if p.step_w == 1:
            split_rows(x, 1, target, q.row, q.pitch, source, p.width, count, first, last, q.pitch, 0)
        elif p.step_w == 2:
            split_rows(x, 2, target, q.row, q.pitch, source, p.width, count, first, last, q.pitch, 0)
        else:
            for r in range(count):
                _gather_phases(x, begin + r * p.width, scratch, at + r * q.row, p.width, p.step_w, q.low_w, q.pitch)


@routine
def _gather_phases(x: Any, begin: int, scratch: Any, to: int, width: int, step: int, low: int, pitch: int) -> None:
    """One row of the source at any step."""
    zero_bytes(pointer(scratch) + to * x.itemsize, step * pitch * x.itemsize)
    for phase in range(step):
        column = low + phase
        before = min(pitch, max(0, -(column // step)))
        inside = min(pitch, max(before, -((column - width) // step)))
        copy_strided(scratch, to + phase * pitch + before, x, begin + column + before * step, step, inside - before)


@routine
def _scatter(tile: Any, width: int, y: Any, to: int, apart: int, step: int, rows: int, columns: int) -> None:
    """y[to + m · apart + j · step] = tile[m][j] for m < rows, j < columns."""
    for m in range(rows):
        at, from_ = np.uintp(to + m * apart), np.uintp(m * width)
        if step == 2:
            spread_row(y, pointer(y) + at * y.itemsize, pointer(tile) + from_ * y.itemsize, columns)
        else:
            for j in range(np.uintp(columns)):
                y[at + j * np.uintp(step)] = tile[from_ + j]


@shared
def correlate_rows(
    x: Any, taps: Any, start: Any, y: Any, plan: Any, layout: Any, entries: Any, heads: Any, blocks: Any, parts: Any,
    tiles: Any, shifts: Any, memory: Any, relu: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (sample, group, box of planes, box of rows), the last fastest."""
    p, q = plan[0], layout[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume, target = p.depth * p.height * p.width, p.target_d * p.target_h * p.target_w
    kw, off, scratch = len(shifts), pointer(shifts), memory[who]
    apart = q.delta * p.stride_h * p.target_w
    for task in range(begin, end):
        rest, box_h = divmod(task, q.boxes_h)
        image, box_d = divmod(rest, q.boxes_d)
        d0, h0 = box_d * q.box_d, box_h * q.box_h
        n_d, n_h = min(q.box_d, p.outputs_d - d0), min(q.box_h, p.outputs_h - h0)
        _gather(x, image * volume, scratch, plan, layout, d0, h0, n_d, n_h)
        part = 2 * (box_d == q.boxes_d - 1) + (box_h == q.boxes_h - 1)
        # While a channel is computed the next one is asked for, a piece with each block.
        ahead = pointer(x) + (image + 1) * volume * size
        lines = 0 if q.boxes_d * q.boxes_h > 1 or task + 1 == end else q.lines
        for m in range(p.rows):
            channel = image % p.groups * p.rows + m
            w, s = pointer(taps) + channel * q.count * size, pointer(start) + channel * size
            corner = (p.first_d + d0 * p.stride_d) * p.target_h + p.first_h + h0 * p.stride_h
            corner = (image * p.rows + m) * target + corner * p.target_w + p.first_w
            for block in range(parts[part], parts[part + 1]):
                used = blocks[block, 2]
                head, count = pointer(entries) + heads[used] * ENTRY * 8, heads[used + 1] - heads[used]
                prefetch_lines(ahead, lines)
                ahead += lines * LINE_BYTES
                for i in range(len(tiles)):
                    column, vectors, stored = tiles[i, 0], tiles[i, 1], tiles[i, 2]
                    a = pointer(scratch) + (_TILE + blocks[block, 0] + column) * size
                    to = corner + blocks[block, 1] + column * p.stride_w
                    c, rows_apart = pointer(y) + to * size, apart
                    if p.stride_w != 1:
                        for r in range(used):
                            prefetch_lines(c + r * apart * size, stored * p.stride_w * size // LINE_BYTES + 1)
                        c, rows_apart = pointer(scratch), vectors * lanes
                    last = stored - (vectors - 1) * lanes
                    if _VECTORS == 4 and vectors == 4:  # left out where none is so wide: it costs registers
                        sweep(x, 4, 4, w, a, head, count, off, kw, s, c, rows_apart, used, last, relu)
                    elif vectors == 2:
                        sweep(x, 4, 2, w, a, head, count, off, kw, s, c, rows_apart, used, last, relu)
                    else:
                        sweep(x, 8, 1, w, a, head, count, off, kw, s, c, rows_apart, used, last, relu)
                    if p.stride_w != 1:
                        _scatter(scratch, rows_apart, y, to, apart, p.stride_w, used, stored)
