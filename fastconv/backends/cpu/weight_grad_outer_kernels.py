"""Weight gradient with the channels in the lanes: dw[m, tap, c] = Σ over outputs o of gy[m, o] · x[o + tap, c].

Idea: what a box of outputs reads of x is transposed to [position][channel of a tile] from where it lies, without
padding, gy to [output][row of a block]; then `simd.outer` sums over the outputs as it sums over channels in the forward
pass. A tap sums over the outputs that it finds a source for, and over no others. So that these are long runs, outputs
are put in an order of their own: [part of the columns][plane][row][image][column of the part], the parts cut wherever a
tap enters or leaves the source. With dilations of a third of an image that is little more than half of the products.
What is not finite in gy is NaN times the zeros of the padding: it is looked for while gy is packed.

Loop order: unit (a box, or several images in one) → some blocks of rows → tile of channels → block of rows → tap → run
→ output. Registers hold the tile of dw, the first level the unit's outputs of a block of gy, the second those of a tile
of channels. Cost: one FMA for each (row, tap, channel, output inside), one read and write of x and gy for the
transposition. Floor: the FMA rate; for many channels (few would waste lanes).

Units are cut into slices with a partial gradient each, added in order (see weight_grad.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_bytes, copy_strided, zero_bytes
from fastconv.backends.cpu.host import inlined, pointer, routine
from fastconv.backends.cpu.simd import NARROW, ROWS, WIDE, interleave, outer, transpose
from fastconv.backends.cpu.team import shared

WIDE_VECTORS, _NARROW = WIDE[ROWS], NARROW[ROWS]
_LANES4, _LANES8 = lanes_of(4), lanes_of(8)

_NUMBERS = (
    "groups channels rows taps parts depth height width outputs_d outputs_h outputs_w step_d step_h step_w "
    "low_d low_h low_w reach_d reach_h reach_w box_d box_h box_w boxes_d boxes_h boxes_w planes columns area "
    "together skips shares"
).split()
LAYOUT = np.dtype([(name, np.int64) for name in _NUMBERS])
"""What the kernel reads of a correlation: outputs box_d × box_h × box_w to a box, `together` images to a unit; an
output reads places `low` to low + reach - 1 behind its own; a box of the source has room for `planes` of `area`
positions, rows of `columns`; `skips`: whether some tap finds padding; `shares`: so many groups here have part of the
channels of one, and all of its rows."""


@routine
def _tile_of(c: int, pitch: int, lanes: int) -> tuple[int, int]:
    """First channel and number of channels of the tile that channel c belongs to."""
    wide = c // (WIDE_VECTORS * lanes) * WIDE_VECTORS * lanes
    if pitch - wide >= WIDE_VECTORS * lanes:
        return wide, WIDE_VECTORS * lanes
    return c // (_NARROW * lanes) * _NARROW * lanes, _NARROW * lanes


@inlined
def _order(cuts: Any, number: int, n_d: int, n_h: int, part: int, d: int, h: int) -> int:
    """The place of the first output of a part of a row, of the first of `number` images, in the order of the unit."""
    place: int = number * (n_d * n_h * cuts[part] + (d * n_h + h) * (cuts[part + 1] - cuts[part]))
    return place


@routine
def _runs(cuts: Any, taps: Any, number: int, d0: int, n_d: int, h0: int, n_h: int, runs: Any, counts: Any) -> None:
    """runs[tap, i] = (first, last) output of a run of the tap in the order of the unit; counts[tap] of them."""
    for t in range(len(taps)):
        count = 0
        low, high = max(0, taps[t, 2] - h0), min(n_h, taps[t, 3] - h0)
        for part in range(taps[t, 4], taps[t, 5]):
            for d in range(max(0, taps[t, 0] - d0), min(n_d, taps[t, 1] - d0)):
                first = _order(cuts, number, n_d, n_h, part, d, low)
                last = _order(cuts, number, n_d, n_h, part, d, high)
                if count > 0 and first == runs[t, count - 1, 1] and first < last:
                    runs[t, count - 1, 1] = last
                elif first < last:
                    runs[t, count, 0], runs[t, count, 1] = first, last
                    count += 1
        counts[t] = count


@routine
def _places(q: Any, cuts: Any, number: int, n_d: int, n_h: int, z: int, y: int, v: int, off: Any, lanes: int) -> None:
    """Where the outputs of a unit, in its order, find their own place: off[0] in wide tiles, off[1] in narrow ones.

    The first is z planes, y rows and v columns behind the beginning of what is transposed.
    """
    count = 0
    for part in range(q.parts):
        for d in range(n_d):
            for h in range(n_h):
                for image in range(number):
                    row = (image * q.planes + z + d * q.step_d) * q.area + (y + h * q.step_h) * q.columns + v
                    for w in range(cuts[part], cuts[part + 1]):
                        place = (row + w * q.step_w) * lanes
                        off[0, count], off[1, count] = place * WIDE_VECTORS, place * _NARROW
                        count += 1


@inlined
def _transposed(
    x: Any, q: Any, memory: Any, line_at: int, line: int, group: int, image: int, number: int, z0: int, z1: int,
    y0: int, y1: int, v0: int, v1: int, pitch: int,
) -> None:  # fmt: skip
    """Planes z0 … z1 - 1, rows and columns likewise, of some images to memory as [tile of channels][position][channel].

    What a vector would read behind the array goes by way of memory[line_at:], a line to a channel.
    """
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume, address = q.depth * q.height * q.width, pointer(memory)
    if z0 == z1 or y0 == y1 or v0 == v1:
        return
    joined = y1 - y0 if v1 - v0 == q.width else 1  # whole rows are one run
    count = joined * (v1 - v0)
    vectors = -(-count // lanes)
    for i in range(number):
        for z in range(z0, z1):
            for y in range(y0, y1, joined):
                start = ((image + i) * q.groups + group) * q.channels * volume + (z * q.height + y) * q.width + v0
                base = (i * q.planes + z - z0) * q.area + (y - y0) * q.columns
                for c in range(0, q.channels, lanes):
                    source, step = pointer(x, start + c * volume), volume
                    if start + (c + lanes - 1) * volume + vectors * lanes > x.size:
                        for m in range(min(lanes, q.channels - c)):
                            copy_bytes(address + (line_at + m * line) * size, source + m * volume * size, count * size)
                        source, step = address + line_at * size, line
                    tile, width = _tile_of(c, pitch, lanes)
                    target = tile * (number * q.planes * q.area + lanes) + base * width + c - tile
                    transpose(x, source, step, vectors, address + target * size, width)


@inlined
def _packed(
    gy: Any, q: Any, cuts: Any, memory: Any, to: int, line_at: int, line: int, group: int, image: int, number: int,
    d0: int, n_d: int, h0: int, n_h: int, w0: int, n_w: int, m0: int,
) -> None:  # fmt: skip
    """Rows m0 … m0 + ROWS - 1 of gy for the outputs of a unit to memory[to:] as [output in its order][row]."""
    size = gy.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    outputs = q.outputs_d * q.outputs_h * q.outputs_w
    joined = n_h if n_w == q.outputs_w else 1
    count, valid, address = joined * n_w, min(ROWS, q.rows - m0), pointer(memory)
    vectors, natural = -(-count // lanes), line_at + ROWS * line
    parts = 0
    for part in range(q.parts):
        parts += cuts[part + 1] > cuts[part]
    in_order = parts == 1 and (number == 1 or n_d * n_h == 1)
    for i in range(number):
        for d in range(n_d):
            for h in range(0, n_h, joined):
                at = ((image + i) * (q.groups // q.shares) + group // q.shares) * q.rows + m0
                at = at * outputs + ((d0 + d) * q.outputs_h + h0 + h) * q.outputs_w + w0
                source, step = pointer(gy, at), outputs
                if valid < ROWS or at + (ROWS - 1) * outputs + vectors * lanes > gy.size:
                    for m in range(valid):
                        copy_bytes(address + (line_at + m * line) * size, source + m * outputs * size, count * size)
                    zero_bytes(address + (line_at + valid * line) * size, (ROWS - valid) * line * size)
                    source, step = address + line_at * size, line
                if in_order:
                    place = to + ((i * n_d + d) * n_h + h) * n_w * ROWS
                    interleave(gy, ROWS, source, step, vectors, address + place * size)
                    continue
                interleave(gy, ROWS, source, step, vectors, address + natural * size)
                for part in range(q.parts):
                    columns = cuts[part + 1] - cuts[part]
                    for row in range(joined):
                        place = to + (_order(cuts, number, n_d, n_h, part, d, h + row) + i * columns) * ROWS
                        from_ = natural + (row * n_w + cuts[part]) * ROWS
                        copy_strided(memory, place, memory, from_, 1, columns * ROWS)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def weight_grad_outer(
    gy: Any, x: Any, partial: Any, layout: Any, cuts: Any, taps: Any, memory: Any, panel: int, stride: int,
    together: int, line: int, chunks: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (slice of units, group, chunk of row blocks).

    partial is [slice][group][row][tap][channel], rows and channels padded. Scratch: the transposed unit (`panel`
    elements), the packed gy of the blocks taken `together` (`stride` outputs each), then lines of `line` elements for
    what is copied before it is transposed or put in order.
    """
    q = layout[0]
    lanes = _LANES4 if x.itemsize == 4 else _LANES8
    slices, blocks, pitch = partial.shape[0], partial.shape[2] // ROWS, partial.shape[4]
    samples = x.size // (q.groups * q.channels * q.depth * q.height * q.width)
    boxes = q.boxes_d * q.boxes_h * q.boxes_w
    units = -(-samples // q.together) * boxes
    off, runs = np.empty((2, stride), np.int64), np.empty((q.taps, q.parts * q.box_d, 2), np.int64)
    counts, own, zeros = np.empty(q.taps, np.int64), np.empty(q.parts + 1, np.int64), np.zeros(ROWS, x.dtype)
    scratch, line_at = memory[who], panel + together * ROWS * stride
    for task in range(begin, end):
        rest, chunk = divmod(task, chunks)
        s, g = divmod(rest, q.groups)
        b0, b1 = blocks * chunk // chunks, blocks * (chunk + 1) // chunks
        first_unit = units * s // slices
        sums = pointer(partial, (s * q.groups + g) * blocks * ROWS * q.taps * pitch)
        for unit in range(first_unit, units * (s + 1) // slices):
            rest, box_w = divmod(unit, q.boxes_w)
            rest, box_h = divmod(rest, q.boxes_h)
            image, box_d = divmod(rest, q.boxes_d)
            image *= q.together
            number = min(q.together, samples - image)
            d0, h0, w0 = box_d * q.box_d, box_h * q.box_h, box_w * q.box_w
            n_d, n_h, n_w = (
                min(q.box_d, q.outputs_d - d0),
                min(q.box_h, q.outputs_h - h0),
                min(q.box_w, q.outputs_w - w0),
            )
            z0, z1 = _source(d0, n_d, q.step_d, q.low_d, q.reach_d, q.depth)
            y0, y1 = _source(h0, n_h, q.step_h, q.low_h, q.reach_h, q.height)
            v0, v1 = 0, q.width
            if q.columns < q.width:
                v0, v1 = _source(w0, n_w, q.step_w, q.low_w, q.reach_w, q.width)
            for part in range(q.parts + 1):
                own[part] = min(max(cuts[part] - w0, 0), n_w)
            _transposed(x, q, scratch, line_at, line, g, image, number, z0, z1, y0, y1, v0, v1, pitch)
            z, y, v = d0 * q.step_d - z0, h0 * q.step_h - y0, w0 * q.step_w - v0
            _places(q, own, number, n_d, n_h, z, y, v, off, lanes)
            _runs(own, taps, number, d0, n_d, h0, n_h, runs, counts)
            for start in range(b0, b1, together):
                stop = min(b1, start + together)
                for block in range(start, stop):
                    to = panel + (block - start) * ROWS * stride
                    _packed(
                        gy, q, own, scratch, to, line_at, line, g, image, number, d0, n_d, h0, n_h, w0, n_w,
                        block * ROWS,
                    )  # fmt: skip
                _multiply(
                    x, q, scratch, panel, stride, start, stop, off, taps, runs, counts, pointer(zeros), sums, pitch,
                    number * q.planes * q.area + lanes, unit > first_unit,
                )  # fmt: skip
                for block in range(start, stop if q.skips else start):
                    to, outputs = panel + (block - start) * ROWS * stride, number * n_d * n_h * n_w
                    if not _is_finite(scratch, to, outputs * ROWS):
                        _meet_padding(scratch, to, outputs, runs, counts, partial[s, g, block * ROWS :])


@routine(fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def _is_finite(values: Any, first: int, count: int) -> bool:
    """Whether there is neither NaN nor infinity among values[first : first + count]."""
    zero = values.dtype.type(0)
    total = zero
    for i in range(np.uintp(count)):
        total += values[np.uintp(first) + i] * zero
    return bool(total == zero)


@routine
def _meet_padding(packed: Any, at: int, outputs: int, runs: Any, counts: Any, sums: Any) -> None:
    """sums[row, tap] += gy · 0 for the outputs of a block that find nothing but padding at the tap."""
    zero = packed.dtype.type(0)
    for t in range(len(counts)):
        first = 0
        for i in range(counts[t] + 1):
            last = runs[t, i, 0] if i < counts[t] else outputs
            for o in range(first, last):
                for m in range(ROWS):
                    product = packed[at + o * ROWS + m] * zero
                    if product != zero:
                        for c in range(sums.shape[2]):
                            sums[m, t, c] += product
            if i < counts[t]:
                first = runs[t, i, 1]


@inlined
def _source(first: int, count: int, step: int, low: int, reach: int, size: int) -> tuple[int, int]:
    """What `count` outputs from `first` on read of an axis: positions begin ≤ position < end, none in the padding."""
    begin = max(0, first * step + low)
    return begin, max(begin, min(size, (first + count - 1) * step + low + reach))


@inlined
def _multiply(
    x: Any, q: Any, memory: Any, packed: int, stride: int, start: int, stop: int, off: Any, taps: Any, runs: Any,
    counts: Any, zeros: int, sums: int, pitch: int, positions: int, add: bool,
) -> None:  # fmt: skip
    """Blocks start ≤ block < stop of rows times all tiles of channels, stored to the sums or added to them."""
    size, zero = x.itemsize, x.dtype.type(0)
    lanes = _LANES4 if size == 4 else _LANES8
    c, c_stride = 0, q.taps * pitch
    while c < pitch:
        _, width = _tile_of(c, pitch, lanes)
        wide = width == WIDE_VECTORS * lanes
        for block in range(start, stop):
            for t in range(q.taps):
                place, held = sums + ((block * ROWS * q.taps + t) * pitch + c) * size, add
                if counts[t] == 0 and not add:
                    for m in range(ROWS):
                        zero_bytes(place + m * c_stride * size, width * size)
                b = pointer(memory, c * positions + taps[t, 6] * width)
                for i in range(counts[t]):
                    first, count = runs[t, i, 0], runs[t, i, 1] - runs[t, i, 0]
                    a = pointer(memory, packed + ((block - start) * stride + first) * ROWS)
                    if wide:
                        places = pointer(off, first)
                        outer(zero, ROWS, WIDE_VECTORS, a, 1, ROWS, b, places, count, zeros, place, c_stride, 0, held)
                    else:
                        places = pointer(off, stride + first)
                        outer(zero, ROWS, _NARROW, a, 1, ROWS, b, places, count, zeros, place, c_stride, 0, held)
                    held = True
        c += width


@shared
def add_slices(
    partial: Any, gw: Any, taps: Any, kernel_size: int, rows: int, channels: int, shares: int, who: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    """gw[group][row][share][channel][tap] from the partial gradients of all slices, added in order.

    Tasks are (group, row), those of a share of the channels being a group of their own in `partial`.
    """
    slices, groups, padded_rows, used, pitch = partial.shape
    sums = partial.reshape(partial.size)
    one = np.uintp(groups * padded_rows * used * pitch)
    for task in range(begin, end):
        g, m = divmod(task, rows)
        source = np.uintp((g * padded_rows + m) * used * pitch)
        target = np.uintp(((g // shares * rows + m) * shares + g % shares) * channels * kernel_size)
        for s in range(np.uintp(1), np.uintp(slices)):  # apart from what follows, so that whole vectors are added
            for i in range(np.uintp(used * pitch)):
                sums[source + i] += sums[source + s * one + i]
        first = 0
        if used == kernel_size and (used == 3 or used == 9):  # all taps, in order
            vectors = channels // (_LANES4 if gw.itemsize == 4 else _LANES8)
            first = vectors * (_LANES4 if gw.itemsize == 4 else _LANES8)
            if vectors > 0 and used == 3:
                interleave(gw, 3, pointer(sums, source), pitch, vectors, pointer(gw, target))
            elif vectors > 0:
                interleave(gw, 9, pointer(sums, source), pitch, vectors, pointer(gw, target))
        for c in range(np.uintp(first), np.uintp(channels)):
            for t in range(np.uintp(used)):
                gw[target + c * np.uintp(kernel_size) + np.uintp(taps[t])] = sums[source + t * np.uintp(pitch) + c]
