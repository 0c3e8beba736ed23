"""Correlation as a GEMM over shifted views: the kernels behind forward convolution and input gradient.

Idea: in the gathered box of a source (see gather.py) tap k of every output lies at the same distance off[k], so the
convolution is the product of the packed weights [rows][k] with a matrix whose row k is the box, shifted; nothing is
unfolded. Loop order: box → block of output rows → run of tiles of columns → k (in `simd.outer`). Registers hold the
tile's outputs, the first-level cache the block's weights, the second level the box, which each block reads anew. Cost
per output: k FMAs; per tile and k 8 weights and 3 source vectors for 24 vector FMAs, 6 and 2 for 12 with 16 registers.
Floor: the FMA rate for many rows, the source and target traffic for few.

One call packs and computes: two would cost a small convolution more than its arithmetic. What a kernel needs to know
comes as one array of numbers, because every argument of a call costs time too.

A box of a 1×1 convolution is read in place, unless its channels share sets of the cache; its tiles begin where vectors
do in memory, if all channels allow it: loads across lines of the cache took a quarter longer. The tiles of a box
prefetch the next one, if it has many channels and comes from far.

Where boxes would waste more than it costs to gather each tap apart, exact columns are taken, see columns.py; where a
stride or the ends of short rows would cost much, the operands are exchanged, see row_lanes.py. estimates.py says where.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_strided, gather_box, place_of_box
from fastconv.backends.cpu.host import LINE_BYTES, PAGE_BYTES, inlined, pointer, routine
from fastconv.backends.cpu.packed_weights import (
    block_at,
    pack_blocks,
    packing,
    room_for_lines,
    steps_in_place,
    tasks_behind_packing,
)
from fastconv.backends.cpu.plan import PLAN_NUMBERS, plan_at
from fastconv.backends.cpu.simd import NARROW, ROWS, WIDE, outer, outer_prefetching, outer_strided
from fastconv.backends.cpu.team import shared

_WIDE, _W4, _W3, _W2, _W1 = (WIDE[rows] for rows in (ROWS, 4, 3, 2, 1))
_NARROW, _N4, _N3, _N2, _N1 = (NARROW[rows] for rows in (ROWS, 4, 3, 2, 1))
_LANES4, _LANES8 = lanes_of(4), lanes_of(8)

TILE_ELEMENTS = 32 * _LANES4
"""Scratch in front of a box for one tile that is stored by pieces; at least rows × columns of any tile."""

_LINES = _WIDE * _LANES4 * 4 // LINE_BYTES  # of a tile's columns in a row of the source

_MANY_STREAMS, _FAR_BYTES = 64, 4 << 20
"""Of a source with more channels, which takes at least so many bytes, a box in place is prefetched while the one before
is computed: the hardware foresees fewer rows of memory by itself, and what is near need not be prefetched."""

SLACK = 16 * _LANES4
"""Scratch behind a box that the last tile may read beyond it."""


@routine(allocates=True)  # type: ignore[untyped-decorator]
def plan_of(numbers: Any) -> Any:
    """Plan, taps and what follows them; in front of all these stand the steps and the kernel size of `pack_blocks`."""
    plan, begin = plan_at(numbers, 3), 3 + PLAN_NUMBERS
    end = begin + plan[0].taps
    return plan, numbers[begin:end], numbers[end:]


def _tiles_by(product: Any) -> Any:
    """Tiles by the micro-kernel of their shape, `outer` or `outer_strided`: `rows_b` is its table or its stride."""

    @routine
    def tiles(
        zero: Any, mr: int, wide: bool, a: int, b: int, rows_b: int, k: int, start: int, c: int, ldc: int, relu: int,
        add: int, count: int, step_b: int, step_c: int,
    ) -> None:  # fmt: skip
        """`count` tiles side by side, `step_b` and `step_c` bytes apart.

        `zero` tells the type: an array would have its references counted.
        """
        for _ in range(count):
            if mr == ROWS and wide:
                product(zero, ROWS, _WIDE, a, 1, ROWS, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == ROWS:
                product(zero, ROWS, _NARROW, a, 1, ROWS, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 4 and wide:
                product(zero, 4, _W4, a, 1, 4, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 4:
                product(zero, 4, _N4, a, 1, 4, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 3 and wide:
                product(zero, 3, _W3, a, 1, 3, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 3:
                product(zero, 3, _N3, a, 1, 3, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 2 and wide:
                product(zero, 2, _W2, a, 1, 2, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 2:
                product(zero, 2, _N2, a, 1, 2, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 1 and wide:
                product(zero, 1, _W1, a, 1, 1, b, rows_b, k, start, c, ldc, relu, add)
            else:
                product(zero, 1, _N1, a, 1, 1, b, rows_b, k, start, c, ldc, relu, add)
            b += step_b
            c += step_c

    return tiles


def _tiles_in_place_by(product: Any) -> Any:
    """Tiles of weights that are read where they lie: code of its own, because that takes more addresses."""

    @routine
    def tiles_in_place(
        zero: Any, wide: bool, a: int, a_row: int, a_step: int, b: int, rows_b: int, k: int, start: int, c: int, ldc:
        int, relu: int, add: int, count: int, step_b: int, step_c: int,
    ) -> None:  # fmt: skip
        """As `tiles` by `_tiles_by`, for ROWS rows of weights that lie `a_row` apart, their products `a_step`."""
        for _ in range(count):
            if wide:
                product(zero, ROWS, _WIDE, a, a_row, a_step, b, rows_b, k, start, c, ldc, relu, add)
            else:
                product(zero, ROWS, _NARROW, a, a_row, a_step, b, rows_b, k, start, c, ldc, relu, add)
            b += step_b
            c += step_c

    return tiles_in_place


def _either(tiles: Any, tiles_in_place: Any) -> Any:
    """Tiles of packed blocks or of weights in place."""

    @inlined
    def either(
        zero: Any, mr: int, wide: bool, a: int, a_row: int, a_step: int, b: int, rows_b: int, k: int, start: int, c:
        int, ldc: int, relu: int, add: int, count: int, step_b: int, step_c: int,
    ) -> None:  # fmt: skip
        """Of packed blocks if `a_step` = 0."""
        if a_step == 0:
            tiles(zero, mr, wide, a, b, rows_b, k, start, c, ldc, relu, add, count, step_b, step_c)
        else:
            tiles_in_place(zero, wide, a, a_row, a_step, b, rows_b, k, start, c, ldc, relu, add, count, step_b, step_c)

    return either


tiles, tiles_strided = _tiles_by(outer), _tiles_by(outer_strided)
_tiles_anywhere = _either(tiles, _tiles_in_place_by(outer))
tiles_strided_anywhere = _either(tiles_strided, _tiles_in_place_by(outer_strided))


@routine
def _tiles_prefetching(
    zero: Any, a: int, a_row: int, a_step: int, b: int, offsets: int, k: int, start: int, c: int, ldc: int, relu: int,
    count: int, step: int, ahead: int,
) -> None:  # fmt: skip
    """As `_tiles_anywhere`, for wide tiles of ROWS rows that prefetch what lies `ahead`."""
    row, next_ = (a_row, a_step) if a_step else (1, ROWS)
    for _ in range(count):
        outer_prefetching(zero, ROWS, _WIDE, a, row, next_, b, offsets, k, start, c, ldc, relu, 0, ahead)
        b += step
        c += step


@routine
def tile_width(mr: int, lanes: int, left: int) -> tuple[int, bool]:
    """Columns of the next tile when `left` are left, and whether it is the wide one."""
    wide = (_WIDE if mr == ROWS else _W4 if mr == 4 else _W3 if mr == 3 else _W2 if mr == 2 else _W1) * lanes
    narrow = (_NARROW if mr == ROWS else _N4 if mr == 4 else _N3 if mr == 3 else _N2 if mr == 2 else _N1) * lanes
    if left > wide - narrow:
        return wide, True
    return narrow, False


@routine
def _store_rows(
    y: Any, to: int, row_step: int, line_step: int, step: int, tile: Any, valid: int, width: int, q: int, pitch: int,
    columns: int, rows: int,
) -> None:  # fmt: skip
    """Store the tile at flat position q of a box (rows × columns, `pitch` apart) without the waste between rows.

    In the target the tile's rows lie `row_step` apart, rows of outputs `line_step`, outputs `step`.
    """
    row, column = divmod(q, pitch)
    j = 0
    while j < width and row < rows:
        count = min(width - j, columns - column)
        if count > 0:
            target = to + row * line_step + column * step
            for m in range(valid):
                if step == 1:
                    copy_strided(y, target + m * row_step, tile, m * width + j, 1, count)
                else:
                    for i in range(np.uintp(count)):
                        y[np.uintp(target + m * row_step) + i * np.uintp(step)] = tile[np.uintp(m * width + j) + i]
        j += pitch - column
        row += 1
        column = 0


@inlined
def _readable(x: Any, end: int) -> bool:
    """Whether tiles may read up to x[end], though nothing they read behind x is used: not beyond its last page."""
    return bool(pointer(x, end) <= -(-pointer(x, x.size) // PAGE_BYTES) * PAGE_BYTES)


@inlined
def _box_tiles(
    like: Any, y: Any, scratch: Any, p: Any, mr: int, valid: int, a: int, a_row: int, a_step: int, start: int, source:
    int, offsets: int, to: int, rows: int, columns: int, relu: int, ahead: int,
) -> None:  # fmt: skip
    """A block of rows of weights times all columns of a box at `source`, stored from y[to] on.

    Whole tiles prefetch the lines `ahead` elements behind the first vector of theirs, unless that is 0.
    """
    zero, lanes = like.dtype.type(0), _LANES4 if like.itemsize == 4 else _LANES8
    target, line = p.target_d * p.target_h * p.target_w, p.stride_h * p.target_w
    runs, length = (rows, columns) if p.rowwise else (1, (rows - 1) * p.pitch + columns)
    side_by_side = valid == mr and (p.linear or p.stride_w == 1)
    for run in range(runs):
        q = 0
        while q < length:
            width, wide = tile_width(mr, lanes, length - q)
            position = run * p.pitch + q
            row, column = divmod(position, p.pitch)
            b, step, count = source + position * like.itemsize, width * like.itemsize, 0
            if side_by_side:
                count = (length - q if p.linear else columns - column) // width
            if count > 0:  # directly, as far as whole tiles of this width go
                count = count if wide else 1
                place = pointer(y, to + row * line + column)
                if ahead != 0 and wide and mr == ROWS:
                    _tiles_prefetching(
                        zero, a, a_row, a_step, b, offsets, p.count, start, place, target, relu, count, step, ahead
                    )
                    q += count * width
                    continue
                _tiles_anywhere(
                    zero, mr, wide, a, a_row, a_step, b, offsets, p.count, start, place, target, relu, 0, count, step,
                    step,
                )  # fmt: skip
                q += count * width
                continue
            _tiles_anywhere(
                zero, mr, wide, a, a_row, a_step, b, offsets, p.count, start, pointer(scratch), width, relu, 0, 1, 0, 0
            )
            _store_rows(y, to, target, line, p.stride_w, scratch, valid, width, position, p.pitch, columns, rows)
            q += width


@inlined
def _aligned(p: Any, first: int, lanes: int, w0: int, columns: int) -> tuple[int, int, int]:
    """First column and columns of a box in place, moved so that its tiles are aligned, and how many lie before them.

    `first` is the number of the element in memory with which a row begins. Boxes begin where a vector does, if all rows
    have one there. The first box takes what lies before as well: it then is larger than a gathered one could be.
    """
    head = -first % lanes
    if head == 0 or p.width % lanes or p.width < p.box_w + lanes + SLACK:
        return w0, columns, 0
    if w0 > 0:
        return w0 + head, min(columns, p.width - w0 - head), 0
    return 0, columns + head, head


@inlined
def _ahead(p: Any, task: int, chunks: int, end: int, at: int) -> int:
    """How far behind element `at`, where a box in place begins, that of the next task begins; 0 if that is the same."""
    if task + 1 == end or (task + 1) % chunks != 0:
        return 0
    image, _, _, w0 = place_of_box(p, (task + 1) // chunks)
    return int(image * p.channels * p.depth * p.height * p.width + w0 - at)


@inlined
def _line_to_prefetch(block: int, blocks: int) -> int:
    """The line of a tile's columns that block number `block` of all prefetches, each one once; -1: none."""
    line = block * _LINES // max(blocks, _LINES)
    return line if block == 0 or line != (block - 1) * _LINES // max(blocks, _LINES) else -1


@shared(allocates=True)  # type: ignore[untyped-decorator]
def correlate_boxes(
    x: Any, w: Any, b: Any, y: Any, numbers: Any, packed: Any, memory: Any, chunks: int, relu: int, together: int,
    who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (sample, group, plane, box row, box column, chunk of row blocks), the last fastest.

    `together` = 0: the weights are read where they lie, and b is not empty. `together` < 0: in front of these are as
    many tasks that each pack a part of the weights into `packed`, for all. Else the blocks for `together` tasks at a
    time are packed just before, into the thread's own memory; either all tasks go together, or each block is needed by
    one task only.
    `numbers` holds what `plan_of` says, then the tables of `gather_box`, count offsets into the gathered box, and
    (1×1 only) count offsets into the source in place. The scratch of the tasks is memory[who].
    """
    plan, taps, rest = plan_of(numbers)
    p = plan[0]
    own = memory[who]
    if together == 0:
        row_step, step = steps_in_place(numbers)
        _boxes(x, w, b, 0, row_step, step, y, plan, rest, own, chunks, relu, begin, end)
        begin = end
    while begin < end:
        stop, first, last, before, rows, at = packing(p, ROWS, chunks, together, begin, end)
        weights = own if together > 0 else packed
        start = weights[rows * p.count :]
        pack_blocks(
            w, b, weights, start, plan, taps, numbers[0], numbers[1], numbers[2], False,
            own[own.size - room_for_lines(numbers[2]) :], before, first, last,
        )  # fmt: skip
        low, high = tasks_behind_packing(packed, together, begin, stop)
        _boxes(x, weights, start, before, 0, 0, y, plan, rest, own[at:], chunks, relu, low, high)
        begin = stop


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _boxes(
    x: Any, packed: Any, start: Any, before: int, row_step: int, step: int, y: Any, plan: Any, rest: Any, scratch: Any,
    chunks: int, relu: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Compute tasks by weights without the first `before` rows; steps of weights in place, else 0."""
    p = plan[0]
    entries = p.planes + p.phases_h + p.phases_w
    tables, off = rest[:entries], rest[entries:]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume = p.depth * p.height * p.width
    target = p.target_d * p.target_h * p.target_w
    origin = pointer(scratch) + TILE_ELEMENTS * size
    # What a last tile reads beyond its box.
    reach = (_NARROW if p.packed % ROWS == 0 else _N1) * lanes - 1
    prefetches = p.channels > _MANY_STREAMS and p.blocks >= _LINES and x.size * size >= _FAR_BYTES
    gathered = -1
    source_at, offsets = origin, pointer(off)
    for task in range(begin, end):
        box, chunk = divmod(task, chunks)
        image, d, h0, w0 = place_of_box(p, box)
        g = image % p.groups
        rows, columns = min(p.box_h, p.outputs_h - h0), min(p.box_w, p.outputs_w - w0)
        base, head = image * p.channels * volume, 0
        if p.direct:
            w0, columns, head = _aligned(p, pointer(x, base) // size, lanes, w0, columns)
        if box != gathered:
            gathered = box
            if p.direct and _readable(x, base + (p.channels - 1) * volume + w0 + columns + reach):
                source_at, offsets = pointer(x) + (base + w0) * size, pointer(off) + p.count * 8
            else:
                source_at, offsets = origin, pointer(off)
                gather_box(x, base, scratch, TILE_ELEMENTS, plan, tables, d, h0, w0)
        ahead = _ahead(p, task, chunks, end, base + w0) if prefetches and source_at != origin else 0
        to = image * p.rows * target + (p.first_d + d * p.stride_d) * p.target_h * p.target_w
        to += (p.first_h + h0 * p.stride_h) * p.target_w + p.first_w + w0 * p.stride_w
        for block in range(p.blocks * chunk // chunks, p.blocks * (chunk + 1) // chunks):
            r0 = block * ROWS
            mr = min(ROWS, p.packed - r0)
            valid = min(mr, p.rows - r0)
            row = g * p.packed + r0 - before
            line = _line_to_prefetch(block, p.blocks)
            prefetched = ahead + line * (LINE_BYTES // size) if ahead != 0 and line >= 0 else 0
            a, s = pointer(packed, block_at(g * p.packed - before, r0, p.count, row_step)), pointer(start, row)
            done = 0
            while done < columns:  # twice, if some columns lie in front of the first aligned one
                some = head if done < head else columns - done
                _box_tiles(
                    x, y, scratch, p, mr, valid, a, row_step, step, s, source_at + done * size, offsets,
                    to + r0 * target + done, rows, some, relu, prefetched,
                )  # fmt: skip
                done += some
