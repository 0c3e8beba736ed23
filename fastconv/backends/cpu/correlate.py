"""Correlation as a GEMM over shifted views: the kernels behind forward convolution and input gradient.

Idea: in the gathered box of a source (see gather.py) tap k of every output lies at the same distance off[k], so the
convolution is the product of the packed weights [rows][k] with a matrix whose row k is the box, shifted; nothing is
unfolded. Loop order: box → block of output rows → run of tiles of columns → k (in `simd.outer`). Registers hold the
tile's outputs, the first-level cache the block's weights, the second level the box, which each block reads anew. Cost
per output: k FMAs; per tile and k 8 weights and 3 source vectors for 24 vector FMAs, 6 and 2 for 12 with 16 registers.
Floor: the FMA rate for many rows, the source and target traffic for few.

One call packs and computes: two would cost a small convolution more than its arithmetic. What a kernel needs to know
comes as one array of numbers, because every argument of a call costs time too.

A box of a 1×1 convolution is read in place. Where boxes would waste more than it costs to gather each tap apart, exact
columns are taken, see columns.py; where a stride or the ends of short rows would cost much, the operands are exchanged,
see row_lanes.py. estimates.py says where.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.atomics import add, load, rest
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_strided, gather_box, place_of_box
from fastconv.backends.cpu.host import inlined, pointer, routine
from fastconv.backends.cpu.plan import PLAN_NUMBERS, plan_at
from fastconv.backends.cpu.scratch import ALIGNED
from fastconv.backends.cpu.simd import NARROW, ROWS, WIDE, copy_rows, interleave, outer, outer_strided
from fastconv.backends.cpu.team import shared

_WIDE, _W4, _W3, _W2, _W1 = (WIDE[rows] for rows in (ROWS, 4, 3, 2, 1))
_NARROW, _N4, _N3, _N2, _N1 = (NARROW[rows] for rows in (ROWS, 4, 3, 2, 1))
_LANES4, _LANES8 = lanes_of(4), lanes_of(8)

_TOGETHER = 16  # channels whose taps are transposed before any is picked

TILE_ELEMENTS = 32 * _LANES4
"""Scratch in front of a box for one tile that is stored by pieces; at least rows × columns of any tile."""

SLACK = 16 * _LANES4
"""Scratch behind a box that the last tile may read beyond it."""


def line_elements(kernel_size: int) -> int:
    """Elements of scratch for the taps that `pack_blocks` transposes before it picks some."""
    return _TOGETHER * (kernel_size + _LANES4) * ROWS


_line_elements = inlined(line_elements)


@routine
def pack_blocks(
    w: Any, b: Any, packed: Any, start: Any, plan: Any, taps: Any, row_step: int, channel_step: int, kernel_size:
    int, tap_major: bool, lines: Any, before: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Weights into [group][block of rows][k][row of block] and biases into [group][row], zeros at the end.

    k is (channel, tap), or (tap, channel) if `tap_major`. Row r and channel c of a group find their taps at
    w[group_base + r · row_step + c · channel_step]; `b` may be empty. Tasks begin ≤ task < end of (group, block); the
    first `before` of all rows are not kept. `lines`: room for `line_elements`. Nothing is allocated here, so nothing
    can fail: other threads may wait for the end.
    """
    p = plan[0]
    size = w.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    group_step = p.rows * p.channels * kernel_size
    # Whole vectors of taps of a block's rows are transposed at once: all channels in one run where they follow each
    # other in memory (forward), else channel by channel (input gradient). Some taps only, or taps in another order,
    # are transposed all and then picked.
    in_order = p.taps == kernel_size and (p.taps == 1 or not tap_major)
    tap_to, channel_to = (p.channels, 1) if tap_major else (1, p.taps)
    joined = channel_step == kernel_size
    run = p.count // lanes if joined else -(-p.taps // lanes)
    for task in range(begin, end):
        g, block = divmod(task, p.blocks)
        r0 = block * ROWS
        mr = min(ROWS, p.packed - r0)
        valid = min(mr, p.rows - r0)
        row = g * p.packed + r0 - before
        to = row * p.count
        source = g * group_step + r0 * row_step
        for r in range(mr):
            start[row + r] = b[g * p.rows + r0 + r] if r < valid and b.size else start.dtype.type(0)
        first = 0
        if valid == ROWS and not in_order:
            first = p.taps * _pick_taps(
                w, lines, packed, to, source, row_step, channel_step, kernel_size, taps, p.channels, tap_to, channel_to
            )
        elif valid == ROWS and run > 0 and (joined or p.taps > 2):
            for c in range(1 if joined else p.channels):
                at = 0 if joined else c * p.taps
                if at + run * lanes > p.count:
                    break  # the last channels would write, or read, beyond the block
                from_, target = source + c * channel_step, to + at * ROWS
                interleave(w, ROWS, pointer(w) + from_ * size, row_step, run, pointer(packed) + target * size)
                first = at + (run * lanes if joined else p.taps)
        _pack_block(w, packed, to, source, row_step, channel_step, taps, tap_to, channel_to, first, p.count, mr, valid)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def pack(
    w: Any, b: Any, packed: Any, start: Any, plan: Any, taps: Any, row_step: int, channel_step: int, kernel_size:
    int, tap_major: bool, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """`pack_blocks` of all rows for callers in Python."""
    lines = np.empty(_line_elements(kernel_size), w.dtype)
    pack_blocks(w, b, packed, start, plan, taps, row_step, channel_step, kernel_size, tap_major, lines, 0, begin, end)


@routine
def packing(
    p: Any, block_rows: int, chunks: int, together: int, begin: int, end: int
) -> tuple[int, int, int, int, int, int]:
    """What a kernel packs before it computes the first of the tasks begin ≤ task < end, see `correlate_boxes`.

    These tasks end before the first number; blocks second ≤ block < third of (group, block) are packed for them. So
    many rows are left out in front of the packed ones (fourth), so many are there (fifth), and behind them and their
    biases, if these are the thread's own, its scratch begins (sixth).
    """
    blocks, parts = p.groups * p.blocks, -together
    if together < 0:
        return end, min(begin, parts) * blocks // parts, min(end, parts) * blocks // parts, 0, p.groups * p.packed, 0
    stop = min(end, begin + together)
    first = begin // chunks * p.blocks + begin % chunks * p.blocks // chunks
    last = min(stop // chunks * p.blocks + stop % chunks * p.blocks // chunks, blocks)
    before = first // p.blocks * p.packed + first % p.blocks * block_rows
    rows = last // p.blocks * p.packed + last % p.blocks * block_rows - before
    return stop, first, last, before, rows, -(-rows * (p.count + 1) // ALIGNED) * ALIGNED


@routine
def tasks_behind_packing(packed: Any, together: int, begin: int, end: int) -> tuple[int, int]:
    """What is left to compute of some tasks: if the first of all were to pack, those behind, once all is packed.

    Ranges are taken in order, so who waits here waits for threads that pack. `packed` ends with the count of what they
    have done.
    """
    if together > 0:
        return begin, end
    parts, counter = -together, pointer(packed, packed.size - ALIGNED)
    if begin < parts:
        add(counter, min(end, parts) - begin)
    if end > parts:
        while load(counter) < parts:
            rest()
    return max(begin - parts, 0), max(end - parts, 0)


@routine
def _pick_taps(
    w: Any, lines: Any, packed: Any, to: int, source: int, row_step: int, channel_step: int, kernel_size: int, taps:
    Any, channels: int, tap_to: int, channel_to: int,
) -> int:  # fmt: skip
    """Some taps of a block of ROWS rows to k = tap · tap_to + channel · channel_to of packed[to:], by way of `lines`.

    Returns the number of channels done: none is whose vectors would reach beyond the weights.
    """
    size = w.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    joined = channel_step == kernel_size
    pitch = kernel_size if joined else -(-kernel_size // lanes) * lanes
    for c0 in range(0, channels, _TOGETHER):
        count = min(_TOGETHER, channels - c0)
        runs, length = (1, count * kernel_size) if joined else (count, kernel_size)
        vectors = -(-length // lanes)
        first = source + c0 * channel_step
        if first + (ROWS - 1) * row_step + (runs - 1) * channel_step + vectors * lanes > w.size:
            return c0
        for c in range(runs):
            place = pointer(lines) + c * pitch * ROWS * size
            interleave(w, ROWS, pointer(w) + (first + c * channel_step) * size, row_step, vectors, place)
        for c in range(count):
            for t in range(len(taps)):
                k = t * tap_to + (c0 + c) * channel_to
                picked = pointer(lines) + (c * pitch + taps[t]) * ROWS * size
                copy_rows(w, pointer(packed) + (to + k * ROWS) * size, picked)
    return channels


@routine
def _pack_block(
    w: Any, packed: Any, to: int, source: int, row_step: int, channel_step: int, taps: Any, tap_to: int, channel_to:
    int, first: int, count: int, mr: int, valid: int,
) -> None:  # fmt: skip
    """The same for one block, element by element, from number `first` of (channel, tap) on."""
    c, t = divmod(first, len(taps))
    step = np.uintp(row_step)
    for _ in range(first, count):
        column = np.uintp(source + c * channel_step + taps[t])
        at = np.uintp(to + (t * tap_to + c * channel_to) * mr)
        if valid == ROWS and row_step == 1:
            copy_rows(w, pointer(packed) + at * w.itemsize, pointer(w) + column * w.itemsize)
        elif valid == ROWS:
            for r in range(np.uintp(ROWS)):
                packed[at + r] = w[column + r * step]
        else:
            for r in range(mr):
                packed[at + np.uintp(r)] = w[column + np.uintp(r) * step] if r < valid else packed.dtype.type(0)
        t += 1
        if t == len(taps):
            t = 0
            c += 1


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
                product(zero, ROWS, _WIDE, a, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == ROWS:
                product(zero, ROWS, _NARROW, a, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 4 and wide:
                product(zero, 4, _W4, a, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 4:
                product(zero, 4, _N4, a, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 3 and wide:
                product(zero, 3, _W3, a, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 3:
                product(zero, 3, _N3, a, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 2 and wide:
                product(zero, 2, _W2, a, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 2:
                product(zero, 2, _N2, a, b, rows_b, k, start, c, ldc, relu, add)
            elif mr == 1 and wide:
                product(zero, 1, _W1, a, b, rows_b, k, start, c, ldc, relu, add)
            else:
                product(zero, 1, _N1, a, b, rows_b, k, start, c, ldc, relu, add)
            b += step_b
            c += step_c

    return tiles


tiles, tiles_strided = _tiles_by(outer), _tiles_by(outer_strided)


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
def _box_tiles(
    like: Any, y: Any, scratch: Any, p: Any, mr: int, valid: int, a: int, start: int, source: int, offsets: int, to:
    int, rows: int, columns: int, relu: int,
) -> None:  # fmt: skip
    """A block of rows of weights times all columns of a box at `source`, stored from y[to] on."""
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
                tiles(zero, mr, wide, a, b, offsets, p.count, start, place, target, relu, 0, count, step, step)
                q += count * width
                continue
            tiles(zero, mr, wide, a, b, offsets, p.count, start, pointer(scratch), width, relu, 0, 1, 0, 0)
            _store_rows(y, to, target, line, p.stride_w, scratch, valid, width, position, p.pitch, columns, rows)
            q += width


@shared(allocates=True)  # type: ignore[untyped-decorator]
def correlate_boxes(
    x: Any, w: Any, b: Any, y: Any, numbers: Any, packed: Any, memory: Any, chunks: int, relu: int, together: int,
    who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (sample, group, plane, box row, box column, chunk of row blocks), the last fastest.

    `together` < 0: in front of these are as many tasks that each pack a part of the weights into `packed`, for all.
    Else the blocks for `together` tasks at a time are packed just before, into the thread's own memory; either all
    tasks go together, or each block is needed by one task only.
    `numbers` holds what `plan_of` says, then the tables of `gather_box`, count offsets into the gathered box, and
    (1×1 only) count offsets into the source in place. The scratch of the tasks is memory[who].
    """
    plan, taps, rest = plan_of(numbers)
    p = plan[0]
    own = memory[who]
    while begin < end:
        stop, first, last, before, rows, at = packing(p, ROWS, chunks, together, begin, end)
        weights = own if together > 0 else packed
        start = weights[rows * p.count :]
        pack_blocks(
            w, b, weights, start, plan, taps, numbers[0], numbers[1], numbers[2], False,
            own[own.size - _line_elements(numbers[2]) :], before, first, last,
        )  # fmt: skip
        low, high = tasks_behind_packing(packed, together, begin, stop)
        _boxes(x, weights, start, before, y, plan, rest, own[at:], chunks, relu, low, high)
        begin = stop


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _boxes(
    x: Any, packed: Any, start: Any, before: int, y: Any, plan: Any, rest: Any, scratch: Any, chunks: int, relu: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Compute tasks by weights without the first `before` rows."""
    p = plan[0]
    entries = p.planes + p.phases_h + p.phases_w
    tables, off = rest[:entries], rest[entries:]
    size = x.itemsize
    volume = p.depth * p.height * p.width
    target = p.target_d * p.target_h * p.target_w
    origin = pointer(scratch) + TILE_ELEMENTS * size
    gathered = -1
    source_at, offsets = origin, pointer(off)
    for task in range(begin, end):
        box, chunk = divmod(task, chunks)
        image, d, h0, w0 = place_of_box(p, box)
        g = image % p.groups
        rows, columns = min(p.box_h, p.outputs_h - h0), min(p.box_w, p.outputs_w - w0)
        if box != gathered:
            gathered = box
            base = image * p.channels * volume
            # Read in place where the last tile does not reach beyond the array.
            if p.direct and base + (p.channels - 1) * volume + w0 + columns + SLACK <= x.size:
                source_at, offsets = pointer(x) + (base + w0) * size, pointer(off) + p.count * 8
            else:
                source_at, offsets = origin, pointer(off)
                gather_box(x, base, scratch, TILE_ELEMENTS, plan, tables, d, h0, w0)
        to = image * p.rows * target + (p.first_d + d * p.stride_d) * p.target_h * p.target_w
        to += (p.first_h + h0 * p.stride_h) * p.target_w + p.first_w + w0 * p.stride_w
        for block in range(p.blocks * chunk // chunks, p.blocks * (chunk + 1) // chunks):
            r0 = block * ROWS
            mr = min(ROWS, p.packed - r0)
            valid = min(mr, p.rows - r0)
            row = g * p.packed + r0 - before
            a, s = pointer(packed) + row * p.count * size, pointer(start) + row * size
            _box_tiles(x, y, scratch, p, mr, valid, a, s, source_at, offsets, to + r0 * target, rows, columns, relu)
