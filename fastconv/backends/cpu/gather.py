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
from fastconv.backends.cpu.host import embedded, inlined, pointer, routine
from fastconv.backends.cpu.simd import prefetch, take_columns, take_every, take_every_between

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_AHEAD = 4  # channels between asking for columns and gathering them: far apart in memory, unforeseen by the hardware
_CHANNELS = 64  # of a run of columns before the next run follows, whose columns lie beside them in memory
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


@inlined
def _zero(target: Any, to: int, count: int) -> None:
    """target[to + j] = 0 for j < count. A call of memset costs more than the one or two positions of most paddings."""
    if count > 2:
        zero_bytes(pointer(target) + to * target.itemsize, count * target.itemsize)
    elif count > 0:
        target[np.uintp(to)] = 0
        target[np.uintp(to + count - 1)] = 0


@embedded
def copy_strided(target: Any, to: int, source: Any, start: int, step: int, count: int) -> None:
    """target[to + j] = source[start + j · step] for j < count; nothing behind the last element is read or written.

    Embedded, because of the constant steps of most callers: inlined it cost patches a twentieth.
    """
    size = source.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    if step == 1 and lanes <= count <= _SHORT * lanes:
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


@inlined
def place_of_box(p: Any, box: int) -> tuple[int, int, int, int]:
    """(image, plane, first row, first column) of the outputs of box number `box`; the columns run fastest."""
    rest, column = divmod(box, p.boxes_w)
    rest, row = divmod(rest, p.boxes_h)
    image, plane = divmod(rest, p.outputs_d)
    return image, plane, row * p.box_h, column * p.box_w


@routine(allocates=True)  # type: ignore[untyped-decorator]
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


@routine(allocates=True)  # type: ignore[untyped-decorator]
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


@routine(allocates=True)  # type: ignore[untyped-decorator]
def gather_columns(
    x: Any, group: int, panel: Any, to: int, width: int, tile_step: int, plan: Any, positions: Any, first: int, count:
    int, t0: int, t1: int, c0: int, c1: int, tap_step: int, channel_step: int,
) -> None:  # fmt: skip
    """Gather `count` outputs from number `first` on (sample-major) into tiles [row][width] of panel[to:].

    Taps t0 ≤ t < t1 and channels c0 ≤ c < c1 of the group, in row (t - t0) · tap_step + (c - c0) · channel_step. Tiles
    lie `tile_step` apart; columns that fill the last one and positions outside the source are 0.
    """
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume = p.depth * p.height * p.width
    runs, vectors = _runs(plan, group, c0, first, count, lanes, width, tile_step, positions, t0, t1)
    row_step = channel_step * width
    for c in range(0, c1 - c0, _CHANNELS):
        some, away = min(_CHANNELS, c1 - c0 - c), c * volume
        for t in range(t1 - t0):
            row = to + (t * tap_step + c * channel_step) * width
            for i in range(len(vectors)):
                at, source = row + vectors[i], runs[t, i, 0] + away
                kept, before, after = runs[t, i, 1], runs[t, i, 2], runs[t, i, 3]
                if p.step_w == 1:
                    place, origin = pointer(panel) + at * size, pointer(x) + source * size
                    take_columns(x, place, row_step, origin, volume, kept, before, after, some, _AHEAD)
                else:
                    _take_strided(x, panel, at, row_step, source, volume, p.step_w, kept, before, after, some)


@routine
def _take_strided(
    x: Any, panel: Any, to: int, row_step: int, source: int, volume: int, step: int, kept: int, before: int, after: int,
    channels: int,
) -> None:  # fmt: skip
    """As `simd.take_columns`, columns `step` apart in the source and channels `volume`."""
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    for c in range(channels):
        at, first = to + c * row_step, source + c * volume
        place, origin = pointer(panel) + at * size, pointer(x) + first * size
        prefetch(x, origin + _AHEAD * volume * size)
        if (step == 2 or step == 4) and first >= 0 and first + step * lanes <= x.size:
            if step == 2:
                take_every_between(x, 2, place, origin, kept, before, after)
            else:
                take_every_between(x, 4, place, origin, kept, before, after)
        else:
            for j in range(kept, lanes):
                panel[at + j] = x[first + j * step] if before <= j < after else x.dtype.type(0)


@inlined
def row_after(p: Any, sample: int, d: int, h: int) -> tuple[int, int, int]:
    """The row of outputs behind row h of plane d."""
    h += 1
    if h == p.outputs_h:
        h = 0
        d += 1
        if d == p.outputs_d:
            d = 0
            sample += 1
    return sample, d, h


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _runs(
    plan: Any, group: int, c0: int, first: int, count: int, lanes: int, width: int, tile_step: int, positions: Any, t0:
    int, t1: int,
) -> Any:  # fmt: skip
    """Columns first ≤ column < first + count, filled up to whole tiles, cut into vectors and at ends of output rows.

    Returns for each tap and run (index in the source of lane 0 of its vector, lane of its first output, lanes from
    which and up to which it lies inside the source), and for each run where in the tiles its vector lies.
    """
    p = plan[0]
    volume = p.depth * p.height * p.width
    filled = -(-count // width) * width
    most = filled // lanes + count // p.outputs_w + 2
    runs, place = np.empty((t1 - t0, most, 4), np.int64), np.empty(most, np.int64)
    sample, rest = divmod(first, p.outputs_d * p.outputs_h * p.outputs_w)
    d, rest = divmod(rest, p.outputs_h * p.outputs_w)
    h, w = divmod(rest, p.outputs_w)
    done, number = 0, 0
    while done < filled:
        tile, column = divmod(done, width)
        lane = column % lanes
        place[number] = tile * tile_step + column - lane
        n = lanes - lane if done >= count else min(lanes - lane, count - done, p.outputs_w - w)
        channel = ((sample * p.groups + group) * p.channels + c0) * volume
        for t in range(t1 - t0):
            z, y = d * p.step_d + positions[t0 + t, 0], h * p.step_h + positions[t0 + t, 1]
            v = w * p.step_w + positions[t0 + t, 2]
            runs[t, number, 0] = channel + (z * p.height + y) * p.width + v - lane * p.step_w
            runs[t, number, 1], runs[t, number, 2], runs[t, number, 3] = lane, lane, lane
            if done < count and 0 <= z < p.depth and 0 <= y < p.height:
                runs[t, number, 2] = lane + min(n, max(0, -(v // p.step_w)))
                runs[t, number, 3] = lane + max(0, min(n, -((v - p.width) // p.step_w)))
        done += n
        number += 1
        w += n
        if w == p.outputs_w and done < count:
            w = 0
            sample, d, h = row_after(p, sample, d, h)
    return runs, place[:number]
