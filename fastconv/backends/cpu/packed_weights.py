"""The weights of the shift-GEMM in blocks of rows, as its micro-kernel reads them: who packs which of them, and how.

Where the products of a sum lie equally far apart, the micro-kernel reads the weights in place, as fast: rows of forward
convolutions, and of most 1×1 gradients. Others are packed, some taps only, or taps in another order. Whole vectors of
taps of a block's rows are transposed in registers. One call packs and computes: either the first of its tasks pack for
all, or each thread packs what its own need. Cost: one read and one write of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.atomics import add, load, rest
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import inlined, pointer, routine
from fastconv.backends.cpu.scratch import ALIGNED
from fastconv.backends.cpu.simd import ROWS, copy_rows, interleave
from fastconv.backends.cpu.team import shared

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)

_TOGETHER = 16  # channels whose taps are transposed before any is picked
_BLOCKS_OF_LINES = 8  # of rows that are neighbours: those that are copied together


def line_elements(kernel_size: int) -> int:
    """Elements of scratch for the taps that `pack_blocks` transposes before it picks some."""
    return _TOGETHER * (kernel_size + _LANES4) * ROWS


room_for_lines = inlined(line_elements)  # the same within kernels


@inlined
def steps_in_place(numbers: Any) -> tuple[int, int]:
    """Of weights that are read where they lie: elements between two rows and between two products of a sum."""
    return numbers[0], numbers[1] if numbers[2] == 1 else 1


@inlined
def block_at(row: int, r0: int, count: int, row_step: int) -> int:
    """Where the block of rows from r0 on begins: packed, or of weights in place whose rows lie `row_step` ≠ 0 apart.

    Row 0 of the group is number `row`, of `count` products each.
    """
    return row * count + r0 * (row_step if row_step else count)


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
    turned, copied = row_step == kernel_size == 1, begin
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
        if turned and valid == ROWS:
            if task >= copied:  # behind the last ones, or in the next group
                copied = min(end, task + _BLOCKS_OF_LINES, (g + 1) * p.blocks - (p.rows % ROWS > 0))
                _copy_blocks(w, packed, to, source, channel_step, p.count, copied - task)
            continue
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


@routine
def _copy_blocks(w: Any, packed: Any, to: int, source: int, channel_step: int, count: int, blocks: int) -> None:
    """Blocks side by side of weights whose rows are neighbours: a line of the cache has parts of several."""
    size = w.itemsize
    for k in range(count):
        from_, target = pointer(w) + (source + k * channel_step) * size, pointer(packed) + (to + k * ROWS) * size
        for block in range(blocks):
            copy_rows(w, target + block * count * ROWS * size, from_ + block * ROWS * size)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def pack(
    w: Any, b: Any, packed: Any, start: Any, plan: Any, taps: Any, row_step: int, channel_step: int, kernel_size:
    int, tap_major: bool, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """`pack_blocks` of all rows for callers in Python."""
    lines = np.empty(room_for_lines(kernel_size), w.dtype)
    pack_blocks(w, b, packed, start, plan, taps, row_step, channel_step, kernel_size, tap_major, lines, 0, begin, end)


@routine
def first_row(p: Any, block: int, unit: int) -> int:
    """The first row of a block: blocks take the rows in units, each as many as another or one more.

    Units are those of the micro-kernel, blocks of rows or vectors of them; the last one may not be whole.
    """
    return int(-(-p.packed // unit) * block // p.blocks * unit)


@routine
def packing(p: Any, unit: int, chunks: int, together: int, begin: int, end: int) -> tuple[int, int, int, int, int, int]:
    """What a kernel packs before it computes the first of the tasks begin ≤ task < end, see `correlate_boxes`.

    Blocks begin as `first_row` says. These tasks end before the first number; blocks second ≤ block < third of (group,
    block) are packed for them. So many rows are left out in front of the packed ones (fourth), so many are there
    (fifth), and behind them and their biases, if these are the thread's own, its scratch begins (sixth).
    """
    blocks, parts = p.groups * p.blocks, -together
    if together < 0:
        return end, min(begin, parts) * blocks // parts, min(end, parts) * blocks // parts, 0, p.groups * p.packed, 0
    stop = min(end, begin + together)
    first = begin // chunks * p.blocks + begin % chunks * p.blocks // chunks
    last = min(stop // chunks * p.blocks + stop % chunks * p.blocks // chunks, blocks)
    before = first // p.blocks * p.packed + first_row(p, first % p.blocks, unit)
    rows = last // p.blocks * p.packed + first_row(p, last % p.blocks, unit) - before
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
