"""The input gradient of a strided convolution: all phases of the strides from one box.

Idea: the positions of the input with the same remainders modulo the strides are a correlation of their own, the
shift-GEMM of correlate.py with some of the taps. All of them read the same output gradient; so its box is gathered once
for the taps of all. The results of the phases of the columns wait as lines in the cache, where they are put together:
the target is written once, by whole vectors. Loop order: box → phase of planes and rows → band of rows → block of rows
of weights → phase of columns → tile → k. Cost: k FMAs for an output, one read and write in the cache. Floor: the FMA
rate.

Every output is the same chain of FMAs as in correlate.py.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.correlate import SLACK, tile_width, tiles
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.estimates import boxes_time, columns_time, takes_columns
from fastconv.backends.cpu.gather import gather_box, place_of_box
from fastconv.backends.cpu.host import flat, pointer, routine
from fastconv.backends.cpu.packed_weights import line_elements, pack_blocks
from fastconv.backends.cpu.patches import OVERRUN, put_together
from fastconv.backends.cpu.plan import Correlation
from fastconv.backends.cpu.scratch import ALIGNED, call_scratch, scratch_rows
from fastconv.backends.cpu.simd import ROWS, copy_rows
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import team_for

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)

MOST_COLUMN_PHASES = 4
"""Lines that vectors can put together."""

BAND = 1024
"""Positions of a line that wait in the cache for those of the other phases, about."""

_MIN_TASKS = 32  # fewer boxes than this leave threads idle; pieces of output rows share a gathered source
_NS_PER_FLOP = 0.01
_NS_PER_ELEMENT = 0.3

_PHASE_FIELDS = "outputs_d outputs_h outputs_w first_d first_h count packed start offsets taps".split()
PHASE = np.dtype([(name, np.int64) for name in _PHASE_FIELDS])
"""A phase: its outputs and where they begin, its products, where its weights, biases, offsets and taps begin."""


def _together(axes: list[Axis]) -> Axis:
    """An axis of as many outputs as any of the phases has, with the taps of all."""
    one = axes[0]
    offsets = tuple(sorted({offset for axis in axes for offset in axis.offsets}))
    outputs = max(axis.outputs for axis in axes)
    return Axis(one.size, outputs, 1, offsets, tuple(range(len(offsets))), 0, one.stride, one.target)


class Phases:
    """The phases of an input gradient, each a correlation with weights whose rows and channels lie `steps` apart."""

    def __init__(self, correlations: list[Correlation], steps: tuple[int, int]) -> None:
        one = correlations[0]
        self.correlations, self.steps = correlations, steps
        per_axis = [list(dict.fromkeys(c.axes[n] for c in correlations)) for n in range(3)]
        axes = [_together(phases) for phases in per_axis]
        self.box = box = Correlation(axes, one.channels, one.rows, one.groups, one.kernel, one.itemsize)
        # Small images waste much of a box; their phases may rather be gathered as columns, one by one.
        of_columns = sum(map(columns_time, correlations))
        self.pays = not any(map(takes_columns, correlations)) or boxes_time(box) <= of_columns
        self.columns = len(per_axis[2])
        p = box.plan[0]
        self.band = max(1, BAND // int(p["pitch"]))
        self.line = min(self.band, int(p["box_h"])) * int(p["pitch"]) + OVERRUN
        self.elements = self.columns * ROWS * self.line + box.box_elements + SLACK
        self.offsets = np.concatenate([self._offsets(c) for c in correlations])
        self.taps = np.concatenate([np.arange(one.kernel_size), *(c.kernel_taps for c in correlations)])
        self.all_taps = one.plan.copy()
        self.all_taps["taps"], self.all_taps["count"] = one.kernel_size, one.channels * one.kernel_size
        self.block = one.channels * one.kernel_size * ROWS
        phases = []
        packed, offsets, taps = 0, 0, one.kernel_size
        for c in correlations:
            (depth, height, _), start = c.axes, packed + c.groups * c.packed_rows * c.count
            outputs = tuple(axis.outputs for axis in c.axes)
            phases.append((*outputs, depth.first, height.first, c.count, packed, start, offsets, taps))
            packed, offsets = start + c.groups * c.packed_rows, offsets + c.count
            taps += len(c.kernel_taps)
        self.phases, self.packed_elements = np.array(phases, PHASE), packed
        self.flops = sum(c.flops for c in correlations)

    def _offsets(self, c: Correlation) -> Ints:
        """Where in the box of all phases tap k = (channel, d, h, w) of one finds the source of output 0."""
        p = self.box.plan[0]
        depth, height, width = self.box.axes
        places = [
            channel * p["channel"] + depth.offsets.index(d) * p["plane"] + (h - height.low) * p["pitch"] + w - width.low
            for channel, d, h, w in itertools.product(range(c.channels), *(axis.offsets for axis in c.axes))
        ]
        return np.array(places, dtype=np.int64)

    def run(self, source: Array, w: Array, b: Array | None, target: Array, relu: bool) -> None:
        """As `Algorithm.run`; no activation follows an input gradient."""
        box, dtype = self.box, source.dtype
        x, weights, y = flat(source), flat(w), target.reshape(-1)
        bias = np.empty(0, dtype) if b is None else flat(b)
        packed = call_scratch(self.packed_elements, dtype)

        kernel_size = self.correlations[0].kernel_size
        tasks, cost = box.groups * box.blocks, weights.size * _NS_PER_ELEMENT
        team = team_for(tasks, cost)
        memory = scratch_rows(team.size, self.block + ALIGNED + line_elements(kernel_size), dtype)
        _pack_phases(
            weights, bias, packed, self.all_taps, self.phases, self.taps, *self.steps, kernel_size, memory,
            team.address, 0, tasks,
        )  # fmt: skip
        pieces = len(source) * box.groups * box.boxes
        chunks = max(1, min(box.blocks, _MIN_TASKS // pieces))
        tasks, cost = pieces * chunks, len(source) * self.flops * _NS_PER_FLOP + (x.size + y.size) * _NS_PER_ELEMENT
        team = team_for(tasks, cost)
        memory = scratch_rows(team.size, self.elements, dtype)
        _correlate_phases(
            x, packed, y, box.plan, box.tables, self.phases, self.offsets, self.columns, self.band, self.line, memory,
            chunks, team.address, 0, tasks,
        )  # fmt: skip


def suits(correlations: list[Correlation]) -> bool:
    """Whether phases of the columns can be put together, none is missing, and none takes columns in parts."""
    if len(correlations) < 2 or any(c.empty or (len(c.parts) > 1 and takes_columns(c)) for c in correlations):
        return False
    axes = correlations[0].axes
    columns = len({c.axes[2] for c in correlations})
    whole = len(correlations) == math.prod(min(axis.stride, axis.target) for axis in axes)
    return whole and 2 <= columns <= MOST_COLUMN_PHASES


@shared
def _pack_phases(
    w: Any, b: Any, packed: Any, plan: Any, phases: Any, taps: Any, row_step: int, channel_step: int, kernel_size: int,
    memory: Any, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """The weights and biases of all phases, for tasks begin ≤ task < end of (group, block of rows).

    `plan` is that of all taps together, which stand first in `taps`: those of a block are transposed once, and each
    phase picks its own.
    """
    p = plan[0]
    scratch, count = memory[who], p.channels * kernel_size
    block, start, lines = scratch, scratch[count * ROWS :], scratch[count * ROWS + ALIGNED :]
    every = taps[:kernel_size]
    for task in range(begin, end):
        g, number = divmod(task, p.blocks)
        row = g * p.packed + number * ROWS
        mr = min(ROWS, p.packed - number * ROWS)
        pack_blocks(
            w, b, block, start, plan, every, row_step, channel_step, kernel_size, False, lines, row, task, task + 1
        )
        for n in range(len(phases)):
            f = phases[n]
            to, own = f.packed + row * f.count, f.count // p.channels
            for c in range(p.channels):
                for t in range(own):
                    source = (c * kernel_size + taps[f.taps + t]) * mr
                    if mr == ROWS:
                        copy_rows(w, pointer(packed, to), pointer(block, source))
                    else:
                        for r in range(mr):
                            packed[to + r] = block[source + r]
                    to += mr
            for r in range(mr):
                packed[f.start + row + r] = start[r]


@routine
def _lines(
    like: Any, mr: int, a: int, start: int, source: int, offsets: int, count: int, line: int, pitch: int, length: int
) -> None:
    """A block of rows of weights times the `length` positions at `source`, to lines `pitch` elements apart."""
    size, zero = like.itemsize, like.dtype.type(0)
    lanes = _LANES4 if size == 4 else _LANES8
    q = 0
    while q < length:
        width, wide = tile_width(mr, lanes, length - q)
        number = max(1, (length - q) // width) if wide else 1
        b, c, step = source + q * size, line + q * size, width * size
        tiles(zero, mr, wide, a, b, offsets, count, start, c, pitch, 0, 0, number, step, step)
        q += number * width


@routine
def _put_rows(
    lines: Any, line: int, pitch: int, y: Any, to: int, row_step: int, line_step: int, valid: int, rows: int, phases:
    int, columns: int, total: int,
) -> None:  # fmt: skip
    """Put `rows` rows of `total` outputs together, of which `columns` come from each phase and some from the first.

    Row r of output channel m begins at y[to + m · row_step + r · line_step].
    """
    for m in range(valid):
        for r in range(rows):
            source, target = m * line + r * pitch, to + m * row_step + r * line_step
            put_together(lines, source, ROWS * line, phases, y, target, columns)
            for k in range(total - columns * phases):
                y[target + columns * phases + k] = lines[source + k * ROWS * line + columns]


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _correlate_phases(
    x: Any, packed: Any, y: Any, plan: Any, tables: Any, phases: Any, offsets: Any, columns: int, band: int, line: int,
    memory: Any, chunks: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (sample, group, plane, box row, box column, chunk of row blocks), the last fastest.

    `plan` and `tables` are those of the box. Phases of the same planes and rows follow each other, one for each of the
    `columns` phases of the columns. Scratch holds their lines, then the box.
    """
    p = plan[0]
    volume, target = p.depth * p.height * p.width, p.target_d * p.target_h * p.target_w
    step = p.stride_h * p.target_w
    box_at = columns * ROWS * line
    gathered, scratch = -1, memory[who]
    for task in range(begin, end):
        box, chunk = divmod(task, chunks)
        image, d, h0, w0 = place_of_box(p, box)
        g = image % p.groups
        if box != gathered:
            gathered = box
            gather_box(x, image * p.channels * volume, scratch, box_at, plan, tables, d, h0, w0)
        for n in range(0, len(phases), columns):
            f = phases[n]
            if d >= f.outputs_d:
                continue
            corner = image * p.rows * target + (f.first_d + d * p.stride_d) * p.target_h * p.target_w
            corner += (f.first_h + h0 * p.stride_h) * p.target_w + w0 * p.stride_w
            total, least = 0, p.box_w
            for k in range(columns):
                outputs = max(0, min(p.box_w, phases[n + k].outputs_w - w0))
                total, least = total + outputs, min(least, outputs)
            last_row = min(p.box_h, f.outputs_h - h0)
            for row in range(0, last_row, band):
                rows = min(band, last_row - row)
                source, length = pointer(scratch, box_at + row * p.pitch), (rows - 1) * p.pitch + p.box_w
                for block in range(p.blocks * chunk // chunks, p.blocks * (chunk + 1) // chunks):
                    r0 = g * p.packed + block * ROWS
                    mr = min(ROWS, p.packed - block * ROWS)
                    for k in range(columns):
                        f = phases[n + k]
                        a, s = pointer(packed, f.packed + r0 * f.count), pointer(packed, f.start + r0)
                        to, off = pointer(scratch, k * ROWS * line), pointer(offsets, f.offsets)
                        _lines(x, mr, a, s, source, off, f.count, to, line, length)
                    to, valid = corner + block * ROWS * target + row * step, min(mr, p.rows - block * ROWS)
                    _put_rows(scratch, line, p.pitch, y, to, target, step, valid, rows, columns, least, total)
