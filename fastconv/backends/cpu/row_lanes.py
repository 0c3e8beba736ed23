"""Correlation with rows of weights in the lanes: for strides, and for small images.

Idea: the shift-GEMM of correlate.py with its operands exchanged. A vector holds the weights of as many rows as it has
lanes, the source comes element by element: each tap of each output of a tile is one broadcast, wherever it lies. So no
phases of a stride are taken apart, a tile runs on from row to row of outputs without waste, and no load is unaligned.
Loop order: box → block of rows → some outputs → step of the sum → tile → k (in `gathered_outer`). Registers hold a
tile, the first-level cache the weights of a step and the outputs, which wait there until they are transposed back to
planes; the second level holds the box, and while it is computed the source of the next one is asked for.

A source without padding is read in place, else it is copied with its padding, as it lies. Cost: k FMAs for an output,
and for each vector of outputs what a tile costs to begin and end, and a transposition: much for short sums. Floor: the
FMA rate. Every output is the same chain of FMAs as in correlate.py: results agree bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.axes import Axis
from fastconv.backends.cpu.correlate import plan_of
from fastconv.backends.cpu.depthwise_lanes_simd import from_lanes
from fastconv.backends.cpu.depthwise_simd import prefetch_lines
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.estimates import lanes_time, time_without_lanes
from fastconv.backends.cpu.gather import gather_rows, place_of_box, zero_bytes
from fastconv.backends.cpu.host import LINE_BYTES, inlined, pointer, routine
from fastconv.backends.cpu.packed_weights import first_row, packing, tasks_behind_packing
from fastconv.backends.cpu.plan import BOX_BYTES, FAR_ROWS, LEAST_PRODUCTS, Correlation, even_part, rows_to_share
from fastconv.backends.cpu.row_lanes_simd import MOST_VECTORS, OUTPUTS, VECTORS, ask_for_rows, gathered_outer
from fastconv.backends.cpu.scratch import ALIGNED
from fastconv.backends.cpu.simd import transpose
from fastconv.backends.cpu.team import shared

Ints = npt.NDArray[np.int64]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)

_FINISHED = 16 * OUTPUTS
"""Outputs of a block that are computed before they are transposed: whole tiles and whole vectors."""

_FINISHED_ELEMENTS = -(-_FINISHED * MOST_VECTORS * _LANES4 // ALIGNED) * ALIGNED
"""Scratch for them, in front of the box."""

_STEP = 384
"""Vectors of weights for a tile's products one after the other: they stay in the first-level cache."""

_SHORTEST_ROW = 2 * _FINISHED
"""Rows of outputs are cut only above this length, and into no shorter pieces."""

_COPY = 10  # time to copy a vector of the source over that of a vector of products: 6 to 17

_SHARED_OUTPUTS = 192
"""Of a box of an image that threads share, at least: all weights come past for each box."""

_PIECE_LINES = 16  # of the next source are asked for with each tile


class RowLanes:
    """What the kernel reads of a correlation: a plan with boxes of the source as it lies, and tables."""

    def __init__(self, c: Correlation) -> None:
        lanes = lanes_of(c.itemsize)
        depth, height, width = c.axes
        self.correlation, self.plan = c, c.plan.copy()
        plan = self.plan[0]
        self.vectors = -(-c.rows // lanes)
        self.blocks = -(-self.vectors // MOST_VECTORS)
        self.block_vectors = -(-self.vectors // self.blocks)
        """Of the largest blocks: some have one less, for a block of one vector among them would cost most."""
        self.block_rows = self.block_vectors * lanes
        plan["blocks"], plan["packed"] = self.blocks, self.vectors * lanes
        box_h, box_w = _box(c)
        plan["box_h"], plan["box_w"] = box_h, box_w
        plan["boxes_h"], plan["boxes_w"] = -(-height.outputs // box_h), -(-width.outputs // box_w)
        self.boxes = depth.outputs * int(plan["boxes_h"] * plan["boxes_w"])
        plan["direct"] = _in_place(c)
        rows, pitch = _reach(height, box_h), _reach(width, box_w)
        self.copied = 0 if plan["direct"] else len(depth.offsets) * rows * pitch
        plan["box_rows"], plan["pitch"], plan["plane"], plan["channel"] = rows, pitch, rows * pitch, self.copied
        planes = np.arange(len(depth.offsets))
        if plan["direct"]:
            plan["pitch"], plan["plane"] = width.size, height.size * width.size
            plan["channel"] = depth.size * plan["plane"]
            planes = np.array(depth.offsets)
        self.step = even_part(c.count, _STEP // self.block_vectors)
        self.steps = -(-c.count // self.step)
        self.elements = _FINISHED_ELEMENTS + c.channels * self.copied
        self.packed_elements = c.groups * int(plan["packed"]) * (c.count + 1)
        self.tables = self._tables(planes)

    def _tables(self, planes: Ints) -> Ints:
        """Step of the sum; planes, offsets of taps, places of a box' outputs, pieces of its source.

        Offsets and places are elements from the beginning of a box, pieces bytes from where the source of one begins.
        """
        c, plan = self.correlation, self.plan[0]
        depth, height, width = c.axes
        rows, columns = (np.array(axis.offsets) - axis.low for axis in (height, width))
        offsets = _sums(np.arange(c.channels) * plan["channel"], planes * plan["plane"], rows * plan["pitch"], columns)
        places = _sums(np.arange(plan["box_h"]) * height.step * plan["pitch"], np.arange(plan["box_w"]) * width.step)
        area = height.size * width.size
        length = (int(plan["box_rows"]) - 1) * width.size + min(width.size, _reach(width, int(plan["box_w"])))
        pieces = c.itemsize * _sums(
            np.arange(c.channels) * depth.size * area,
            np.array(depth.offsets) * area,
            np.arange(0, length, _PIECE_LINES * LINE_BYTES // c.itemsize),
        )
        return np.concatenate([[self.step], depth.offsets, offsets, places, pieces]).astype(np.int64)


def row_lanes(c: Correlation) -> RowLanes | None:
    """The plan of a correlation, where that is faster than boxes or columns; the outputs must fill their target."""
    few = 2 * c.rows < lanes_of(c.itemsize)
    if few or c.kernel_size == 1 or not c.plan[0]["compact"]:
        return None
    plan = RowLanes(c)
    return plan if lanes_time(plan) < time_without_lanes(c) else None


def _box(c: Correlation) -> tuple[int, int]:
    """Rows and columns of outputs whose source fits, all boxes about as large."""
    depth, height, width = c.axes
    available = BOX_BYTES // (c.itemsize * c.channels * len(depth.offsets))
    rows = (available // _reach(width, width.outputs) - _reach(height, 1)) // height.step + 1
    if rows < 1 and width.outputs > _SHORTEST_ROW:
        columns = (available // _reach(height, 1) - _reach(width, 1)) // width.step + 1
        return 1, even_part(width.outputs, max(columns, _SHORTEST_ROW))
    best, lanes = even_part(height.outputs, max(1, rows)), lanes_of(c.itemsize)
    if depth.outputs > 1:  # each plane has boxes of its own
        return best, width.outputs
    row = 0 if _in_place(c) else _COPY * c.channels * len(depth.offsets) * _reach(width, width.outputs) / lanes
    products = -(-c.rows // lanes) * c.count

    def cost(rows: int) -> float:
        boxes, rest = divmod(height.outputs, rows)
        read = boxes * _reach(height, rows) + (_reach(height, rest) if rest else 0)
        computed = sum(-(-n * width.outputs // OUTPUTS) * OUTPUTS for n in [rows] * boxes + [rest])
        return read * row + computed * products

    least = max(-(-_SHARED_OUTPUTS // width.outputs), LEAST_PRODUCTS // (c.rows * c.count * width.outputs))
    return rows_to_share(height.outputs, best, cost, least), width.outputs


def _in_place(c: Correlation) -> bool:
    """Whether the source can be read where it is: without padding, and near enough together."""
    inside = all(axis.low >= 0 and axis.low + _reach(axis, axis.outputs) <= axis.size for axis in c.axes)
    return inside and c.channels * len(c.axes[0].offsets) < FAR_ROWS


def _reach(axis: Axis, outputs: int) -> int:
    """Source positions from the first to the last that neighbouring outputs read."""
    return (outputs - 1) * axis.step + max(axis.offsets) - axis.low + 1


def _sums(*parts: Any) -> Any:
    """All sums of one number of each part, the last part fastest."""
    total = np.zeros(1, np.int64)
    for part in parts:
        total = (total[:, None] + part).reshape(-1)
    return total


@routine
def _pack(
    w: Any, b: Any, packed: Any, plan: Any, taps: Any, row_step: int, channel_step: int, kernel_size: int, before: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Weights and biases into [group][block][1 + k][row of block], biases first; lanes behind the last row repeat it.

    As `pack_blocks` finds them in w. Tasks begin ≤ task < end of (group, block); the first `before` of all rows are not
    kept.
    """
    p = plan[0]
    size = w.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    in_order = p.taps == kernel_size
    joined = in_order and channel_step == kernel_size  # all channels of a row are one run
    runs, length = (1, p.count) if joined else (p.channels, p.taps)
    for task in range(begin, end):
        g, block = divmod(task, p.blocks)
        r0 = first_row(p, block, lanes)
        width = first_row(p, block + 1, lanes) - r0
        to = (g * p.packed + r0 - before) * (1 + p.count)
        for v in range(0, width, lanes):
            first, valid = r0 + v, min(lanes, p.rows - r0 - v)
            source = g * p.rows * p.channels * kernel_size + first * row_step
            for lane in range(lanes):
                row = g * p.rows + first + min(lane, valid - 1)
                packed[to + v + lane] = b[row] if b.size else packed.dtype.type(0)
            for run in range(runs):
                at, from_, done = to + (1 + run * length) * width + v, source + run * channel_step, 0
                if valid == lanes and in_order and length >= lanes:
                    done = length // lanes * lanes
                    transpose(w, pointer(w, from_), row_step, done // lanes, pointer(packed, at), width)
                for lane in range(lanes):
                    row = from_ + min(lane, valid - 1) * row_step
                    for k in range(done, length):
                        packed[at + k * width + lane] = w[row + (k if joined else taps[k])]


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _copy_box(x: Any, base: int, scratch: Any, p: Any, planes: Any, d: int, h0: int, w0: int) -> None:
    """The source of a box from plane d of outputs on, row h0 and column w0 of x[base:], behind the finished outputs.

    Layout [channel][plane of a tap][row][pitch]; what lies outside the source is 0.
    """
    size = x.itemsize
    above = min(p.box_rows, max(0, -h0))
    below = min(p.box_rows, max(above, p.height - h0))
    span = np.empty((1, 3), np.int64)
    span[0, 0], span[0, 1] = w0, min(p.pitch, max(0, -w0))
    span[0, 2] = min(p.pitch, max(span[0, 1], p.width - w0))
    to = _FINISHED_ELEMENTS
    for c in range(p.channels):
        for i in range(p.planes):
            z = d * p.step_d + planes[i]
            first, last = (above, below) if 0 <= z < p.depth else (0, 0)
            zero_bytes(pointer(scratch, to), first * p.pitch * size)
            if first < last:
                source = base + ((c * p.depth + z) * p.height + h0 + first) * p.width
                gather_rows(
                    x, source, p.width, p.width, scratch, to + first * p.pitch, last - first, p.pitch, 1, 0, span,
                    p.depth * p.height * p.width,
                )  # fmt: skip
            zero_bytes(pointer(scratch, to + last * p.pitch), (p.box_rows - last) * p.pitch * size)
            to += p.plane


@inlined
def _outputs(
    like: Any, y: Any, to: int, p: Any, r0: int, a: int, vectors: int, source: int, offsets: int, places: int, tail:
    int, number: int, step: int, finished: int, relu: int, ahead: int, pieces: Any, piece: int,
) -> int:  # fmt: skip
    """Block of rows `a` from row r0 on times `number` outputs, which are neighbours from y[to] on.

    `places` are those of the outputs, `tail` those of a last tile with fewer. With each tile a piece of the source at
    address `ahead` is asked for; returns the number of the next piece.
    """
    size, zero = like.itemsize, like.dtype.type(0)
    lanes = _LANES4 if size == 4 else _LANES8
    width, apart, target = vectors * lanes, _FINISHED * lanes, p.outputs_d * p.outputs_h * p.outputs_w
    for first in range(0, number, _FINISHED):
        n = min(_FINISHED, number - first)
        for k in range(0, p.count, step):
            row, off, some = a + (1 + k) * width * size, offsets + k * 8, min(step, p.count - k)
            active = relu if k + some == p.count else 0
            for i in range(0, n, OUTPUTS):
                if k == 0 and i % (2 * OUTPUTS) == 0 and MOST_VECTORS == 3 and vectors == 3:
                    ask_for_rows(zero, 3, pointer(y, to + first + i), target * size)
                elif k == 0 and i % (2 * OUTPUTS) == 0:
                    ask_for_rows(zero, VECTORS, pointer(y, to + first + i), target * size)
                if piece < len(pieces):
                    prefetch_lines(ahead + pieces[piece], _PIECE_LINES)
                piece += 1
                at, c = places + (first + i) * 8, finished + i * lanes * size
                if first + i + OUTPUTS > number:
                    at = tail
                start, start_apart, start_step = (c, apart, lanes) if k else (a, lanes, 0)
                if MOST_VECTORS == 3 and vectors == 3:  # left out where none is so wide
                    gathered_outer(
                        zero, 3, row, source, off, at, some, start, start_apart, start_step, c, apart, lanes, active
                    )  # fmt: skip
                elif vectors == 2:
                    gathered_outer(
                        zero, 2, row, source, off, at, some, start, start_apart, start_step, c, apart, lanes, active
                    )  # fmt: skip
                else:
                    gathered_outer(
                        zero, 1, row, source, off, at, some, start, start_apart, start_step, c, apart, lanes, active
                    )  # fmt: skip
        for v in range(vectors):
            plane, valid = pointer(y, to + first + v * lanes * target), min(lanes, p.rows - r0 - v * lanes)
            from_lanes(like, plane, target, valid, finished + v * apart * size, n)
    return piece


@shared(allocates=True)  # type: ignore[untyped-decorator]
def correlate_row_lanes(
    x: Any, w: Any, b: Any, y: Any, numbers: Any, packed: Any, memory: Any, chunks: int, relu: int, together: int,
    who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """As `correlate_boxes`; `numbers` holds what `plan_of` says, then the tables of `RowLanes`."""
    plan, taps, rest = plan_of(numbers)
    p, own = plan[0], memory[who]
    lanes = _LANES4 if x.itemsize == 4 else _LANES8
    while begin < end:
        stop, first, last, before, _, at = packing(p, lanes, chunks, together, begin, end)
        weights = own if together > 0 else packed
        _pack(w, b, weights, plan, taps, numbers[0], numbers[1], numbers[2], before, first, last)
        low, high = tasks_behind_packing(packed, together, begin, stop)
        _boxes(x, weights, before, y, p, rest, own[at:], chunks, relu, low, high)
        begin = stop


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _boxes(
    x: Any, packed: Any, before: int, y: Any, p: Any, rest: Any, scratch: Any, chunks: int, relu: int, begin: int, end:
    int,
) -> None:  # fmt: skip
    """Compute tasks by weights without the first `before` rows."""
    step, planes, rest = rest[0], rest[1:], rest[1 + p.planes :]
    offsets, places, pieces = pointer(rest), rest[p.count :], rest[p.count + p.box_h * p.box_w :]
    tail = np.empty(OUTPUTS, np.int64)
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    area, image = p.height * p.width, p.channels * p.depth * p.height * p.width
    target = p.outputs_d * p.outputs_h * p.outputs_w
    gathered = -1
    for task in range(begin, end):
        box, chunk = divmod(task, chunks)
        n, d, h0, w0 = place_of_box(p, box)
        y0, x0 = h0 * p.step_h + p.low_h, w0 * p.step_w + p.low_w
        rows, columns = min(p.box_h, p.outputs_h - h0), min(p.box_w, p.outputs_w - w0)
        source = pointer(scratch, _FINISHED_ELEMENTS)
        if p.direct:
            source = pointer(x, n * image + d * p.step_d * area + y0 * p.width + x0)
        elif box != gathered:
            gathered = box
            _copy_box(x, n * image, scratch, p, planes, d, y0, x0)
        next_n, next_d, next_h, next_w = place_of_box(p, box + 1)
        row = (next_h * p.step_h + p.low_h) * p.width + next_w * p.step_w + p.low_w
        ahead, piece = pointer(x, next_n * image + next_d * p.step_d * area + row), 0
        to = n * p.rows * target + (d * p.outputs_h + h0) * p.outputs_w + w0
        runs, length = (1, rows * columns) if p.boxes_w == 1 else (rows, columns)
        for i in range(OUTPUTS):  # what the last tile computes too much is the last output
            tail[i] = places[min(length - length % OUTPUTS + i, length - 1)]
        for block in range(p.blocks * chunk // chunks, p.blocks * (chunk + 1) // chunks):
            r0 = first_row(p, block, lanes)
            vectors = (first_row(p, block + 1, lanes) - r0) // lanes
            a = pointer(packed, (n % p.groups * p.packed + r0 - before) * (1 + p.count))
            for run in range(runs):
                piece = _outputs(
                    x, y, to + r0 * target + run * p.outputs_w, p, r0, a, vectors,
                    source + run * p.step_h * p.pitch * size, offsets, pointer(places), pointer(tail), length, step,
                    pointer(scratch), relu, ahead, pieces, piece,
                )  # fmt: skip
