"""Correlation by exact columns: the source gathered tap by tap for single outputs, across rows and samples.

Idea: the same product as in correlate.py where a box would waste too much: small images, many rows of weights, large
dilation. A panel is some tiles of columns; a tile holds [channel][tap][column], and the sum runs through its memory.
Loop order: panel → step of the sum → block of rows → tile → k (in `simd.outer`). A step is some channels, or some
taps of one: a panel of several tiles stays in the second-level cache, and the weights stream past it only once. They
are in the order that they have in memory, so that for few columns nobody packs them.
Registers hold the tile's outputs, the first level a block's weights. Cost: k FMAs for an output, one read and write of
the source for each tap. Floor: the FMA rate; few rows of weights would not pay for the gathering.

Threads take as many tiles each, where there are enough: on a server processor it costs as much to read what another
core has gathered as to gather it. Where there are fewer panels than keep the threads busy, these share a panel's blocks
of rows; more than two of them gather it together before, and not each for the rows that it takes.

A correlation may come in parts, outputs that read the same taps: with large dilation most taps of most outputs read
padding. All parts share the packed weights, whose order is [tap][channel] then: a part takes runs of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.column_gather import gather_columns, row_after
from fastconv.backends.cpu.correlate import TILE_ELEMENTS, plan_of, tile_width, tiles_strided_anywhere
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_strided
from fastconv.backends.cpu.host import inlined, pointer, routine
from fastconv.backends.cpu.packed_weights import (
    block_at,
    pack_blocks,
    packing,
    room_for_lines,
    steps_in_place,
    tasks_behind_packing,
)
from fastconv.backends.cpu.plan import PANEL_STEP, PLAN_NUMBERS, TILE_VECTORS, plan_at
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.team import shared

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_FEW_TILES, _MANY_PANELS = 6, 8  # a panel of more tiles than that leaves at least so many panels for threads to share
_EVEN_TILES = 4  # for each thread: from there on one tile more or less makes no great difference between them


def panels(tiles: int, longest: int, threads: int) -> int:
    """Panels of at most `longest` tiles that so many tiles of a part are cut into, all about equally long.

    As many for each thread, if there are enough tiles.
    """
    number = -(-tiles // min(longest, max(_FEW_TILES, tiles // _MANY_PANELS)))
    return -(-number // threads) * threads if tiles >= _EVEN_TILES * threads else number


_panels = inlined(panels)  # the same within kernels


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _segments(plan: Any, group: int, first: int, count: int) -> Any:
    """The columns from number `first` on as (column, number of columns, where the first is stored in row 0).

    Columns of a segment are stored `stride_w` apart.
    """
    p = plan[0]
    segments = np.empty((count, 3), np.int64)
    sample, rest = divmod(first, p.outputs_d * p.outputs_h * p.outputs_w)
    d, rest = divmod(rest, p.outputs_h * p.outputs_w)
    h, w = divmod(rest, p.outputs_w)
    column, number = 0, 0
    while column < count:
        n = min(p.outputs_w - w, count - column)
        row = (sample * p.groups + group) * p.rows * p.target_d + p.first_d + d * p.stride_d
        row = row * p.target_h + p.first_h + h * p.stride_h
        target = row * p.target_w + p.first_w + w * p.stride_w
        follows = number > 0 and target == segments[number - 1, 2] + segments[number - 1, 1] * p.stride_w
        if follows and p.compact:
            segments[number - 1, 1] += n
        else:
            segments[number, 0], segments[number, 1], segments[number, 2] = column, n, target
            number += 1
        column += n
        w = 0
        sample, d, h = row_after(p, sample, d, h)
    return segments[:number]


@routine
def _store_columns(
    y: Any, to: int, row_step: int, step: int, segments: Any, results: Any, at: int, pitch: int, valid: int, first: int,
    last: int,
) -> None:  # fmt: skip
    """Columns first ≤ column < last from rows `pitch` apart of results[at:], to rows `row_step` apart.

    The first row is `to` behind the places of the segments.
    """
    for i in range(len(segments)):
        begin, end = max(first, segments[i, 0]), min(last, segments[i, 0] + segments[i, 1])
        if begin < end:
            target, source = to + segments[i, 2] + (begin - segments[i, 0]) * step, at + begin - first
            for m in range(valid):
                if step == 1:
                    copy_strided(y, target + m * row_step, results, source + m * pitch, 1, end - begin)
                else:
                    for j in range(end - begin):
                        y[target + m * row_step + j * step] = results[source + m * pitch + j]


@inlined
def _block_of_panel(
    y: Any, zero: Any, p: Any, a: int, a_row: int, a_step: int, start: int, panel: int, k: int, results: Any, at: int,
    segments: Any, count: int, mr: int, valid: int, row: int, relu: int, add: int, last: bool,
) -> None:  # fmt: skip
    """One step of a block of rows from `row` on, times all tiles of a panel of `count` columns.

    Tiles go to the target if all their columns are neighbours there, else to results[at:], from where the last step
    stores them.
    """
    size = results.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    span, target = TILE_VECTORS * lanes, p.target_d * p.target_h * p.target_w
    neighbours = p.stride_w == 1 and valid == mr
    q, s = 0, 0
    while q < count:
        width, wide = tile_width(mr, lanes, count - q)
        if q % span + width > span:
            width, wide = tile_width(mr, lanes, 0)
        stop = min(q + width, q - q % span + span, count)  # what a tile computes beyond is nothing
        while segments[s, 0] + segments[s, 1] <= q:
            s += 1
        behind, number = segments[s, 0] + segments[s, 1], 1
        direct = neighbours and stop == q + width <= behind
        c, ldc = pointer(results, at + ROWS * q), width
        if direct:
            c, ldc = pointer(y, segments[s, 2] + q - segments[s, 0] + row * target), target
            if width == span:
                number = (behind - q) // span
        b = panel + (q // span * k * span + q % span) * size
        tiles_strided_anywhere(
            zero, mr, wide, a, a_row, a_step, b, span, k, start, c, ldc, relu, add, number, k * span * size, span * size
        )  # fmt: skip
        if last and not direct:
            _store_columns(y, row * target, target, p.stride_w, segments, results, at + ROWS * q, width, valid, q, stop)
        q = stop + (number - 1) * span


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _panel(
    x: Any, packed: Any, start: Any, before: int, row_step: int, step: int, y: Any, scratch: Any, gathered: int, part:
    Any, positions: Any, steps: Any, packed_count: int, group: int, first: int, count: int, b0: int, b1: int, relu: int,
) -> None:  # fmt: skip
    """Blocks of rows b0 ≤ block < b1 of `count` columns of a part, from number `first` on.

    `packed` and `start` begin with row `before` of all groups; steps of weights in place, else 0. `gathered`: the
    address of the panel, step by step; 0 if it is to be gathered. Scratch: a step of the panel, then the results of all
    blocks, tile by tile.
    """
    p = part[0]
    size, zero = x.itemsize, x.dtype.type(0)
    lanes = _LANES4 if size == 4 else _LANES8
    span = TILE_VECTORS * lanes
    segments = _segments(part, group, first, count)
    zeros = np.zeros(ROWS, x.dtype)
    kept = p.panel * ROWS + TILE_ELEMENTS if len(steps) > 1 else 0
    for s in range(len(steps)):
        t0, t1, c0, c1 = steps[s, 1], steps[s, 2], steps[s, 3], steps[s, 4]
        k, add, last = (t1 - t0) * (c1 - c0), s > 0, s == len(steps) - 1
        panel = gathered
        if gathered == 0:
            panel = pointer(scratch)
            gather_columns(
                x, group, scratch, 0, span, k * span, part, positions, first, count, t0, t1, c0, c1, steps[s, 5],
                steps[s, 6],
            )  # fmt: skip
        for block in range(b0, b1):
            row = block * ROWS
            mr = min(ROWS, p.packed - row)
            stored = group * p.packed + row - before
            at = block_at(group * p.packed - before, row, packed_count, row_step)
            a = pointer(packed, at + steps[s, 0] * (step if step else mr))
            begin = pointer(zeros) if add else pointer(start, stored)
            at = p.panel * min(p.count, PANEL_STEP) + (block - b0) * kept
            _block_of_panel(
                y, zero, p, a, row_step, step, begin, panel, k, scratch, at, segments, count, mr, min(mr, p.rows - row),
                row, relu if last else 0, add, last,
            )  # fmt: skip
        if gathered != 0:
            gathered += -(-count // span) * span * k * size


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _gather_slice(
    x: Any, gathered: Any, to: int, part: Any, positions: Any, steps: Any, group: int, first: int, count: int, slice_:
    int, slices: int,
) -> None:  # fmt: skip
    """Slice number `slice_` of the channels in each step of a panel to gathered[to:], as `_panel` reads it."""
    span = TILE_VECTORS * (_LANES4 if x.itemsize == 4 else _LANES8)
    for s in range(len(steps)):
        t0, t1, c0, c1 = steps[s, 1], steps[s, 2], steps[s, 3], steps[s, 4]
        low, high = c0 + (c1 - c0) * slice_ // slices, c0 + (c1 - c0) * (slice_ + 1) // slices
        k = (t1 - t0) * (c1 - c0)
        if low < high:
            gather_columns(
                x, group, gathered, to + (low - c0) * steps[s, 6] * span, span, k * span, part, positions, first, count,
                t0, t1, low, high, steps[s, 5], steps[s, 6],
            )  # fmt: skip
        to += -(-count // span) * span * k


@shared(allocates=True)  # type: ignore[untyped-decorator]
def correlate_columns(
    x: Any, w: Any, b: Any, y: Any, numbers: Any, packed: Any, memory: Any, chunks: int, relu: int, together: int,
    threads: int, gathered: Any, to_gather: bool, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """As `correlate_boxes`, for tasks begin ≤ task < end of (part, group, panel of columns over all samples, chunk).

    Panels are cut for so many `threads`.

    `numbers` holds what `plan_of` says, whether weights are packed as [tap][channel], then for each part: the number of
    its taps and steps, its plan, three positions for each tap, and its steps (`Correlation.channel_steps`).

    The panels are in `gathered`, if that is not empty. A call before this one has filled it, with `to_gather`: it
    computes nothing, and for chunks of blocks it gets slices of channels.
    """
    plan, taps, rest = plan_of(numbers)
    p, own, tap_major, rest = plan[0], memory[who], rest[0] != 0, rest[1:]
    if to_gather:
        _parts(x, own, own, 0, 0, 0, y, p, rest, own, chunks, relu, threads, gathered, True, begin, end)
        begin = end
    elif together == 0:
        row_step, step = steps_in_place(numbers)
        _parts(x, w, b, 0, row_step, step, y, p, rest, own, chunks, relu, threads, gathered, False, begin, end)
        begin = end
    while begin < end:
        stop, first, last, before, rows, at = packing(p, ROWS, chunks, together, begin, end)
        weights = own if together > 0 else packed
        start = weights[rows * p.count :]
        pack_blocks(
            w, b, weights, start, plan, taps, numbers[0], numbers[1], numbers[2], tap_major,
            own[own.size - room_for_lines(numbers[2]) :], before, first, last,
        )  # fmt: skip
        low, high = tasks_behind_packing(packed, together, begin, stop)
        _parts(x, weights, start, before, 0, 0, y, p, rest, own[at:], chunks, relu, threads, gathered, False, low, high)
        begin = stop


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _parts(
    x: Any, packed: Any, start: Any, before_packed: int, row_step: int, step: int, y: Any, p: Any, rest: Any, scratch:
    Any, chunks: int, relu: int, threads: int, gathered: Any, to_gather: bool, begin: int, end: int,
) -> None:  # fmt: skip
    """Compute tasks by weights without the first `before_packed` rows; or gather their slices, in place of chunks."""
    samples = x.size // (p.groups * p.channels * p.depth * p.height * p.width)
    span = TILE_VECTORS * (_LANES4 if x.itemsize == 4 else _LANES8)
    before, at = 0, 0  # tasks of the parts before, and where their panels end
    while len(rest) and before < end:
        used, count = rest[0], rest[1]
        part, rest = plan_at(rest, 2), rest[2 + PLAN_NUMBERS :]
        positions, rest = rest[: 3 * used].reshape(used, 3), rest[3 * used :]
        steps, rest = rest[: 7 * count].reshape(count, 7), rest[7 * count :]
        total = samples * part[0].outputs_d * part[0].outputs_h * part[0].outputs_w
        tiles = -(-total // span)
        panels = _panels(tiles, part[0].panel // span, threads)
        elements = part[0].count * -(-tiles // panels) * span  # of a panel, at most
        task, stop = max(begin - before, 0), min(end - before, p.groups * panels * chunks)
        while task < stop:
            piece, chunk = divmod(task, chunks)
            done = min(chunks - chunk, stop - task)  # of one panel: gathered once
            g, number = divmod(piece, panels)
            first, behind = tiles * number // panels * span, min(total, tiles * (number + 1) // panels * span)
            place = at + piece * elements
            if to_gather:
                done = 1
                _gather_slice(x, gathered, place, part, positions, steps, g, first, behind - first, chunk, chunks)
            else:
                _panel(
                    x, packed, start, before_packed, row_step, step, y, scratch,
                    pointer(gathered, place) if gathered.size else 0, part, positions, steps, p.count, g, first,
                    behind - first, p.blocks * chunk // chunks, p.blocks * (chunk + done) // chunks, relu,
                )  # fmt: skip
            task += done
        before += p.groups * panels * chunks
        at += p.groups * panels * elements
