"""Bringing the source of a piece of work into scratch, where a tap is a plain offset.

A box is a run of output rows of one sample: its source is copied once, padding included, and every tap reads that copy
shifted. Strides are taken apart while copying (a phase of the stride is an image of its own), so a tap reads at step 1.
Cost: one read and one write of the box for all taps and all output channels together.

Columns are single outputs side by side, across rows and samples: each tap is gathered separately, nothing is wasted
between rows. Cost: one read and write for each tap; for small images, where many output channels share it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.host import embedded, pointer, routine
from fastconv.backends.cpu.simd import prefetch, split_every, take_every, take_every_between

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_AHEAD = 4  # channels between asking for columns and gathering them: far apart in memory, unforeseen by the hardware
_SHORT = 16  # vectors up to which a run is copied here: a call of memcpy costs more


@intrinsic
def copy_bytes(typing_context, target, source, count):  # type: ignore[no-untyped-def]
    """memcpy of `count` bytes between addresses."""
    signature = types.void(types.intp, types.intp, types.intp)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        target, source, count = args
        byte = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(builder, builder.inttoptr(target, byte), builder.inttoptr(source, byte), count, 1)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def zero_bytes(typing_context, target, count):  # type: ignore[no-untyped-def]
    """memset of `count` bytes at an address to 0."""
    signature = types.void(types.intp, types.intp)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        target, count = args
        cgutils.memset(builder, builder.inttoptr(target, ir.IntType(8).as_pointer()), count, 0)
        return context.get_dummy_value()

    return signature, codegen


@embedded
def _zero(target: Any, to: int, count: int) -> None:
    """target[to + j] = 0 for j < count. A call of memset costs more than the one or two positions of most paddings."""
    if count > 2:
        zero_bytes(pointer(target) + to * target.itemsize, count * target.itemsize)
    elif count > 0:
        target[np.uintp(to)] = 0
        target[np.uintp(to + count - 1)] = 0


@embedded
def copy_strided(target: Any, to: int, source: Any, start: int, step: int, count: int) -> None:
    """target[to + j] = source[start + j · step] for j < count; nothing behind the last element is read or written."""
    size = source.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    if step == 1 and lanes < count <= _SHORT * lanes:
        place, origin, last = pointer(target) + to * size, pointer(source) + start * size, (count - lanes) * size
        for j in range(0, count - lanes, lanes):
            take_every(source, 1, 0, place + j * size, origin + j * size)
        take_every(source, 1, 0, place + last, origin + last)
    elif step == 1:
        copy_bytes(pointer(target) + to * size, pointer(source) + start * size, count * size)
    elif (step == 2 or step == 4) and count > lanes:
        place, origin = pointer(target) + to * size, pointer(source) + start * size
        # Whole vectors while another element follows; the last one overlaps, and ends with the last element it reads.
        last, behind = place + (count - lanes) * size, origin + ((count - lanes - 1) * step + 1) * size
        if step == 2:
            for j in range(0, count - lanes, lanes):
                take_every(source, 2, 0, place + j * size, origin + j * step * size)
            take_every(source, 2, 1, last, behind)
        else:
            for j in range(0, count - lanes, lanes):
                take_every(source, 4, 0, place + j * size, origin + j * step * size)
            take_every(source, 4, 3, last, behind)
    else:
        for j in range(np.uintp(count)):
            target[np.uintp(to) + j] = source[np.uintp(start) + j * np.uintp(step)]


@routine
def gather_box(x: Any, base: int, scratch: Any, to: int, plan: Any, tables: Any, d: int, h0: int, w0: int) -> None:
    """Copy the source of the box of outputs that begins at (d, h0, w0) from x[base:] to scratch[to:].

    Layout [channel][plane of a tap][phase h][phase w][row][pitch]; what lies outside the source is 0.
    """
    p = plan[0]
    size = x.itemsize
    address = pointer(scratch)
    planes, phases_h, phases_w = p.planes, p.phases_h, p.phases_w
    images = phases_h * phases_w
    spans = _spans(plan, tables, w0)
    for c in range(p.channels):
        for i in range(planes):
            z = d * p.step_d + tables[i]
            plane = to + c * p.channel + i * images * p.plane
            if z < 0 or z >= p.depth:
                zero_bytes(address + plane * size, images * p.plane * size)
                continue
            source = base + (c * p.depth + z) * p.height * p.width
            for ih in range(phases_h):
                _gather_rows(
                    x, source, p.height, p.width, h0 * p.step_h + p.low_h + tables[planes + ih], p.step_h, scratch,
                    plane + ih * phases_w * p.plane, p.box_rows, p.pitch, p.shared, p.step_w, p.plane, spans,
                )  # fmt: skip


@routine
def _spans(plan: Any, tables: Any, w0: int) -> Any:
    """For each phase of the columns [start, first, last]: column `first` ≤ j < `last` of a row of the box is inside.

    Column j of the phase is source column start + j · step. A last line holds what is inside for all phases.
    """
    p = plan[0]
    spans = np.empty((p.phases_w + 1, 3), np.int64)
    spans[p.phases_w, 0], spans[p.phases_w, 1], spans[p.phases_w, 2] = w0 * p.step_w + p.low_w, 0, p.pitch
    for iw in range(p.phases_w):
        start = w0 * p.step_w + p.low_w + tables[p.planes + p.phases_h + iw]
        first = min(p.pitch, max(0, -(start // p.step_w)))
        last = min(p.pitch, max(first, -((start - p.width) // p.step_w)))
        spans[iw, 0], spans[iw, 1], spans[iw, 2] = start, first, last
        spans[p.phases_w, 1], spans[p.phases_w, 2] = max(spans[p.phases_w, 1], first), min(spans[p.phases_w, 2], last)
    return spans


@routine
def _gather_rows(
    x: Any, source: int, height: int, width: int, first_row: int, row_step: int, scratch: Any, to: int, rows: int,
    pitch: int, shared: int, step: int, apart: int, spans: Any,
) -> None:  # fmt: skip
    """Rows first_row + r · row_step of the plane x[source:] to rows r of all phases of a box, `apart` elements apart.

    Numbers instead of the plan: a record counts its references, which costs more than a short row.
    """
    phases, size = len(spans) - 1, x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    start, low, high = spans[phases, 0], spans[phases, 1], spans[phases, 2]
    count = high - low
    # What is inside in every phase is taken apart together where the step is that of the shuffles.
    together = phases == step and count >= lanes and (step == 2 or step == 4)
    for r in range(rows):
        row, to_row = first_row + r * row_step, to + r * pitch
        if row < 0 or row >= height:
            for iw in range(phases):
                zero_bytes(pointer(scratch, to_row + iw * apart), pitch * size)
            continue
        line = source + row * width
        if together:
            origin, target = pointer(x, line + start + low * step), pointer(scratch, to_row + low)
            for j in range(0, count + lanes - 1, lanes):
                at = min(j, count - lanes)  # the last vectors overlap those before
                if step == 2:
                    split_every(x, 2, target + at * size, apart, origin + 2 * at * size)
                else:
                    split_every(x, 4, target + at * size, apart, origin + 4 * at * size)
        for iw in range(phases):
            place, column = to_row + iw * apart, line + spans[iw, 0]
            first, last = spans[iw, 1], spans[iw, 2]
            _zero(scratch, place, first)
            if together:
                for j in range(first, low):
                    scratch[place + j] = x[column + j * step]
                for j in range(high, last):
                    scratch[place + j] = x[column + j * step]
            else:
                copy_strided(scratch, place + first, x, column + first * step, step, last - first)
            _zero(scratch, place + last, pitch - last)
    for iw in range(phases):
        _zero(scratch, to + iw * apart + rows * pitch, shared)


@routine
def gather_columns(
    x: Any,
    group: int,
    panel: Any,
    to: int,
    width: int,
    tile_step: int,
    plan: Any,
    positions: Any,
    first: int,
    count: int,
    c0: int,
    c1: int,
) -> None:
    """Gather `count` outputs from number `first` on (sample-major) into tiles [channel][tap][width] of panel[to:].

    Channels c0 ≤ c < c1 of the group. Tiles lie `tile_step` apart; columns that fill the last one and positions outside
    the source are 0. Up to a vector behind each tile is overwritten.
    """
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume = p.depth * p.height * p.width
    runs, column, length = _runs(plan, group, c0, first, count, lanes, width, tile_step, positions)
    full, rest = divmod(count, width)
    for c in range(c1 - c0):
        for t in range(p.taps):
            row = to + (c * p.taps + t) * width
            # Ascending rows and runs: what a run writes beyond its end is written again by the next.
            for i in range(len(column)):
                source, before, inside = runs[t, i, 0] + c * volume, runs[t, i, 1], runs[t, i, 2]
                at = row + column[i]
                place, origin = pointer(panel) + at * size, pointer(x) + source * size
                prefetch(origin + _AHEAD * volume * size)
                if p.step_w in (1, 2, 4) and source >= 0 and source + p.step_w * lanes <= x.size:
                    if p.step_w == 1:
                        take_every_between(x, 1, place, origin, before, inside)
                    elif p.step_w == 2:
                        take_every_between(x, 2, place, origin, before, inside)
                    else:
                        take_every_between(x, 4, place, origin, before, inside)
                else:
                    for j in range(length[i]):
                        panel[at + j] = x[source + j * p.step_w] if before <= j < inside else x.dtype.type(0)
            if rest:
                _zero(panel, row + full * tile_step + rest, width - rest)


@routine
def _runs(
    plan: Any, group: int, c0: int, first: int, count: int, lanes: int, width: int, tile_step: int, positions: Any
) -> Any:
    """Columns first ≤ column < first + count cut where an output row or a tile ends, and into vectors.

    Returns for each tap and run (index in the source of the run's first output, outputs from which and up to which it
    lies inside the source), and for each run where in the tiles it goes and its length.
    """
    p = plan[0]
    volume = p.depth * p.height * p.width
    most = -(-count // lanes) + count // p.outputs_w + count // width + 3
    runs = np.empty((p.taps, most, 3), np.int64)
    column, length = np.empty(most, np.int64), np.empty(most, np.int64)
    sample, rest = divmod(first, p.outputs_d * p.outputs_h * p.outputs_w)
    d, rest = divmod(rest, p.outputs_h * p.outputs_w)
    h, w = divmod(rest, p.outputs_w)
    done, number = 0, 0
    while done < count:
        tile, column_in_tile = divmod(done, width)
        n = min(lanes, count - done, p.outputs_w - w, width - column_in_tile)
        column[number], length[number] = tile * tile_step + column_in_tile, n
        channel = ((sample * p.groups + group) * p.channels + c0) * volume
        for t in range(p.taps):
            z, y, v = d * p.step_d + positions[t, 0], h * p.step_h + positions[t, 1], w * p.step_w + positions[t, 2]
            runs[t, number, 0] = channel + (z * p.height + y) * p.width + v
            if 0 <= z < p.depth and 0 <= y < p.height:
                runs[t, number, 1] = max(0, -(v // p.step_w))
                runs[t, number, 2] = min(n, -((v - p.width) // p.step_w))
            else:
                runs[t, number, 1], runs[t, number, 2] = 0, 0
        done += n
        number += 1
        w += n
        if w == p.outputs_w:
            w = 0
            h += 1
            if h == p.outputs_h:
                h = 0
                d += 1
                if d == p.outputs_d:
                    d = 0
                    sample += 1
    return runs, column[:number], length[:number]
