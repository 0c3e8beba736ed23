"""Bringing the source of a piece of work into scratch, where a tap is a plain offset.

A box is a run of output rows of one sample: its source is copied once, padding included, and every tap reads that copy
shifted. Strides are taken apart while copying (a phase of the stride is an image of its own), so a tap reads at step 1.
Cost: one read and one write of the box for all taps and all output channels together.

Where single outputs are gathered instead, tap by tap, see column_gather.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter, lanes_of
from fastconv.backends.cpu.gather_simd import split_rows, split_short_rows
from fastconv.backends.cpu.host import LANES, LINE_BYTES, embedded, inlined, pointer, routine
from fastconv.backends.cpu.simd import prefetch, take_every

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_MASKS = LANES == 16  # instructions with masks of their own
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
def copy_short(typing_context, like, target, source, count):  # type: ignore[no-untyped-def]
    """`count` elements between addresses, fewer than a vector has: by two overlapping parts of one, as long as fit."""
    signature = types.void(like, *[types.intp] * 3)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        def by_parts(lanes: int) -> None:
            if lanes == 0:
                return
            emit = Emitter(builder, signature.args[0], lanes)
            with builder.if_else(builder.icmp_signed(">=", args[3], emit.index(lanes))) as (fit, shorter):
                with fit:
                    last = builder.sub(args[3], emit.index(lanes))
                    target, source = emit.pointer(args[1]), emit.pointer(args[2])
                    parts = [emit.load(source), emit.load(emit.at(source, last))]
                    for part, place in zip(parts, (target, emit.at(target, last))):
                        emit.store(part, place)
                with shorter:
                    by_parts(lanes // 2)

        by_parts(Emitter(builder, signature.args[0]).lanes // 2)
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
    elif step == 1 and count < lanes:
        copy_short(source, pointer(target) + to * size, pointer(source) + start * size, count)
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
    gather_channels(x, base, scratch, to, plan, tables, d, h0, w0, 0, plan[0].channels)


@routine(allocates=True)  # type: ignore[untyped-decorator]
def gather_channels(
    x: Any, base: int, scratch: Any, to: int, plan: Any, tables: Any, d: int, h0: int, w0: int, c0: int, c1: int
) -> None:
    """The same for channels c0 ≤ c < c1 of the box, at their places in it."""
    p = plan[0]
    size = x.itemsize
    address = pointer(scratch)
    planes, phases_h, phases_w = p.planes, p.phases_h, p.phases_w
    images = phases_h * phases_w
    bands = _inside(h0 * p.step_h + p.low_h, tables[planes : planes + phases_h], p.step_h, p.height, p.box_rows)
    spans = _inside(w0 * p.step_w + p.low_w, tables[planes + phases_h :][:phases_w], p.step_w, p.width, p.pitch)
    for c in range(c0, c1):
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
                    gather_rows(
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
def gather_rows(
    x: Any, source: int, source_row: int, width: int, scratch: Any, to: int, rows: int, pitch: int, step: int, apart:
    int, spans: Any, ahead: int,
) -> None:  # fmt: skip
    """The rows of `width` from x[source:] on to rows of all phases of a box, `apart` elements apart.

    What lies `ahead` elements further is asked for: the rows of the next channel, which the hardware does not foresee.
    Numbers instead of the plan: a record counts its references, which costs more than a short row.
    """
    phases, size = len(spans), x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    by_shuffles = step == 1 or step == 2 or step == 4 or step == 8 or step == 16
    if phases == step and by_shuffles and (pitch >= lanes or _MASKS):
        start = spans[0, 0]  # all phases of a row together
        target, origin, first, last = pointer(scratch, to), pointer(x, source + start), -start, width - start
        if pitch < lanes and step == 1:
            split_short_rows(x, 1, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        elif pitch < lanes and step == 2:
            split_short_rows(x, 2, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        elif pitch < lanes and step == 4:
            split_short_rows(x, 4, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        elif pitch < lanes and step == 8:
            split_short_rows(x, 8, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        elif pitch < lanes:
            split_short_rows(x, 16, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        elif step == 1:
            foreseen = pitch >= width  # by the hardware: rows follow each other
            split_rows(
                x, 1, target, pitch, apart, origin, source_row, rows, first, last, pitch, 0 if foreseen else ahead
            )  # fmt: skip
        elif step == 2:
            split_rows(x, 2, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        elif step == 4:
            split_rows(x, 4, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        elif step == 8:
            split_rows(x, 8, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        else:
            split_rows(x, 16, target, pitch, apart, origin, source_row, rows, first, last, pitch, ahead)
        return
    for r in range(rows):
        for at in range(0, width * size, LINE_BYTES):
            prefetch(x, pointer(x, source + r * source_row + ahead) + at)
        for iw in range(phases):
            place, column = to + r * pitch + iw * apart, source + r * source_row + spans[iw, 0]
            first, last = spans[iw, 1], spans[iw, 2]
            _zero(scratch, place, first)
            copy_strided(scratch, place + first, x, column + first * step, step, last - first)
            _zero(scratch, place + last, pitch - last)
