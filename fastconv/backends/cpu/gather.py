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
from fastconv.backends.cpu.gather_simd import split_rows
from fastconv.backends.cpu.host import embedded, pointer, routine
from fastconv.backends.cpu.simd import prefetch, take_every, take_every_between

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
    bands = _inside(h0 * p.step_h + p.low_h, tables[planes : planes + phases_h], p.step_h, p.height, p.box_rows)
    spans = _inside(w0 * p.step_w + p.low_w, tables[planes + phases_h :][:phases_w], p.step_w, p.width, p.pitch)
    for c in range(p.channels):
        for i in range(planes):
            z = d * p.step_d + tables[i]
            plane = to + c * p.channel + i * images * p.plane
            if z < 0 or z >= p.depth:
                zero_bytes(address + plane * size, images * p.plane * size)
                continue
            for ih in range(phases_h):
                row, above, below = bands[ih, 0], bands[ih, 1], bands[ih, 2]
                source = base + ((c * p.depth + z) * p.height + row + above * p.step_h) * p.width
                place = plane + ih * phases_w * p.plane
                for iw in range(phases_w):
                    _zero(scratch, place + iw * p.plane, above * p.pitch)
                    _zero(scratch, place + iw * p.plane + below * p.pitch, (p.box_rows - below) * p.pitch + p.shared)
                if below > above:
                    _gather_rows(
                        x, source, p.step_h * p.width, p.width, scratch, place + above * p.pitch, below - above,
                        p.pitch, p.step_w, p.plane, spans, p.depth * p.height * p.width,
                    )  # fmt: skip


@routine
def _inside(low: int, phases: Any, step: int, size: int, count: int) -> Any:
    """For each phase [start, first, last]: of `count` positions start + j · step, first ≤ j < last are inside."""
    spans = np.empty((len(phases), 3), np.int64)
    for i in range(len(phases)):
        start = low + phases[i]
        first = min(count, max(0, -(start // step)))
        spans[i, 0], spans[i, 1] = start, first
        spans[i, 2] = min(count, max(first, -((start - size) // step)))
    return spans


@routine
def _gather_rows(
    x: Any, source: int, source_row: int, width: int, scratch: Any, to: int, rows: int, pitch: int, step: int, apart:
    int, spans: Any, ahead: int,
) -> None:  # fmt: skip
    """The rows of `width` from x[source:] on to rows of all phases of a box, `apart` elements apart.

    What lies `ahead` elements further is asked for: the rows of the next channel, which the hardware does not foresee.
    Numbers instead of the plan: a record counts its references, which costs more than a short row.
    """
    phases, size = len(spans), x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    if phases == step and (step == 1 or step == 2 or step == 4) and pitch >= lanes:  # all phases of a row together
        start = spans[0, 0]
        target, origin, first, last = pointer(scratch, to), pointer(x, source + start), -start, width - start
        if step == 1:
            split_rows(x, 1, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        elif step == 2:
            split_rows(x, 2, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        else:
            split_rows(x, 4, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        return
    for r in range(rows):
        for iw in range(phases):
            place, column = to + r * pitch + iw * apart, source + r * source_row + spans[iw, 0]
            first, last = spans[iw, 1], spans[iw, 2]
            _zero(scratch, place, first)
            copy_strided(scratch, place + first, x, column + first * step, step, last - first)
            _zero(scratch, place + last, pitch - last)


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
                prefetch(x, origin + _AHEAD * volume * size)
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
