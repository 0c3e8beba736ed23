"""Weight gradient with the channels in the lanes: dw[m, tap, c] = Σ over outputs o of gy[m, o] · x[o + tap, c].

Idea: the box of x (gather.py) is transposed to [position][channel of a tile], gy to [output][row of a block]; then a
tap is a shift by whole positions, and `simd.outer` sums over the outputs as it sums over channels in the forward pass.
Loop order: unit → some blocks of rows → tile of channels → block of rows → tap → output. Registers hold the tile of dw,
the first level the unit's outputs of a tile of channels and of a block of gy, the second some blocks and the unit. Only
real outputs are in the sum, so that nothing between rows is multiplied and small images of several samples make one
long sum. Cost: one FMA for each (row, tap, channel, output), one read and write of x and gy for the transposition.
Floor: the FMA rate; for many channels (few would waste lanes).

Units of boxes are cut into slices with a partial gradient each, added in order (see weight_grad.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_bytes, gather_box, place_of_box, zero_bytes
from fastconv.backends.cpu.host import SECOND_LEVEL_BYTES, flat, inlined, pointer, routine
from fastconv.backends.cpu.plan import UNIT_OUTPUTS, Correlation, weight_grad_outer_plan
from fastconv.backends.cpu.scratch import call_scratch, scratch_rows
from fastconv.backends.cpu.simd import NARROW, ROWS, WIDE, interleave, outer, transpose
from fastconv.backends.cpu.team import shared
from fastconv.backends.cpu.weight_grad import slice_count
from fastconv.backends.threads import get_num_threads, share, team_for
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]

WIDE_VECTORS, _NARROW = WIDE[ROWS], NARROW[ROWS]
_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_UNITS_PER_SLICE = 4  # at least, so that adding the partials costs little
_PACKED_BYTES = SECOND_LEVEL_BYTES // 4  # of gy that all tiles of channels meet before the next blocks of rows do
_NS_PER_FLOP = 0.01


def suits(correlation: Correlation) -> bool:
    """Channels fill a vector and rows a block, but for a quarter."""
    lanes = lanes_of(correlation.itemsize)
    return 4 * correlation.channels >= 3 * lanes and 4 * correlation.rows >= 3 * ROWS


@inlined
def _transposed_boxes(
    x: Any, plan: Any, tables: Any, memory: Any, box_at: int, off: Any, group: int, first: int, last: int, positions:
    int, pitch: int,
) -> int:  # fmt: skip
    """Boxes first ≤ box < last of x to memory as [tile of channels][box][position][channel of the tile].

    A box lies at memory[box_at:] while it is transposed. Where output o finds its tap 0 goes to off[0, o] for wide
    tiles and off[1, o] for narrow ones. Returns the number of outputs.
    """
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume = p.depth * p.height * p.width
    address = pointer(memory)
    count = 0
    for box in range(first, last):
        n, d, h0, w0 = place_of_box(p, box)
        start = (n * p.groups + group) * p.channels * volume
        # A 1×1 convolution is transposed from where it lies, if no vector reaches beyond the array.
        in_place = p.direct and p.channels % lanes == 0 and start + (p.channels - 1) * volume + w0 + positions <= x.size
        source, step = pointer(x) + (start + w0) * size, volume
        if not in_place:
            gather_box(x, start, memory, box_at, plan, tables, d, h0, w0)
            source, step = address + box_at * size, p.channel
        base = (box - first) * positions
        for c in range(0, p.channels, lanes):
            tile, width = _tile_of(c, pitch, lanes)
            target = address + (tile * (last - first) * positions + base * width + c - tile) * size
            transpose(x, source + c * step * size, step, -(-p.channel // lanes), target, width)
        for r in range(min(p.box_h, p.outputs_h - h0)):
            for column in range(min(p.box_w, p.outputs_w - w0)):
                position = base + r * p.pitch + column
                off[0, count], off[1, count] = position * WIDE_VECTORS * lanes, position * _NARROW * lanes
                count += 1
    return count


@routine
def _tile_of(c: int, pitch: int, lanes: int) -> tuple[int, int]:
    """First channel and number of channels of the tile that channel c belongs to."""
    wide = c // (WIDE_VECTORS * lanes) * WIDE_VECTORS * lanes
    if pitch - wide >= WIDE_VECTORS * lanes:
        return wide, WIDE_VECTORS * lanes
    return c // (_NARROW * lanes) * _NARROW * lanes, _NARROW * lanes


@inlined
def _packed_rows(
    gy: Any, plan: Any, memory: Any, to: int, lines: int, stride: int, group: int, first: int, last: int, m0: int,
    m1: int,
) -> None:  # fmt: skip
    """Rows m0 ≤ m < m1 of gy for the outputs of boxes first ≤ box < last to memory[to:] as [output][row], zeros behind.

    `lines` is where the rows lie, `stride` apart, before they are interleaved.
    """
    p = plan[0]
    size = gy.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    outputs = p.outputs_d * p.outputs_h * p.outputs_w
    address = pointer(memory)
    count = 0
    for box in range(first, last):
        n, d, h0, w0 = place_of_box(p, box)
        columns = min(p.box_w, p.outputs_w - w0)
        vectors = -(-columns // lanes)
        at = ((n * p.groups + group) * p.rows + m0) * outputs + (d * p.outputs_h + h0) * p.outputs_w + w0
        reach = at + (ROWS - 1) * outputs + vectors * lanes
        if last - first == p.outputs_h == 1 and m1 - m0 == ROWS and reach <= gy.size:  # one run: no need to join any
            interleave(gy, ROWS, pointer(gy) + at * size, outputs, vectors, address + to * size)
            return
        for r in range(min(p.box_h, p.outputs_h - h0)):
            for m in range(m1 - m0):
                source = pointer(gy) + (at + m * outputs + r * p.outputs_w) * size
                copy_bytes(address + (lines + m * stride + count) * size, source, columns * size)
            count += columns
    zero_bytes(address + (lines + (m1 - m0) * stride) * size, (ROWS - (m1 - m0)) * stride * size)
    interleave(gy, ROWS, address + lines * size, stride, -(-count // lanes), address + to * size)


@routine
def _tile_products(
    zero: Any, wide: bool, a: int, b: int, off: int, count: int, zeros: int, c: int, c_stride: int, add: bool
) -> None:
    """One tile of dw at address c, stored or added to what is there."""
    if wide:
        outer(zero, ROWS, WIDE_VECTORS, a, b, off, count, zeros, c, c_stride, 0, add)
    else:
        outer(zero, ROWS, _NARROW, a, b, off, count, zeros, c, c_stride, 0, add)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def weight_grad_outer(
    gy: Any, x: Any, partial: Any, plan: Any, tables: Any, shifts: Any, memory: Any, unit_boxes: int, positions: int,
    stride: int, together: int, chunks: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (slice of units, group, chunk of row blocks).

    partial is [slice][group][row][tap][channel], rows and channels padded. Scratch: the transposed boxes of a unit, the
    packed gy of the blocks taken `together`, then a gathered box or the rows of a block of gy.
    """
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    slices, padded_rows, pitch = partial.shape[0], partial.shape[2], partial.shape[4]
    boxes = x.size // (p.groups * p.channels * p.depth * p.height * p.width) * p.outputs_d * p.boxes_h * p.boxes_w
    units = -(-boxes // unit_boxes)
    off = np.empty((2, stride), np.int64)
    zero, zeros = x.dtype.type(0), np.zeros(ROWS, x.dtype)
    scratch = memory[who]
    address = pointer(scratch)
    blocks = padded_rows // ROWS
    packed_at = unit_boxes * positions * pitch
    behind = packed_at + together * ROWS * stride
    for task in range(begin, end):
        rest, chunk = divmod(task, chunks)
        s, g = divmod(rest, p.groups)
        b0, b1 = blocks * chunk // chunks, blocks * (chunk + 1) // chunks
        for unit in range(units * s // slices, units * (s + 1) // slices):
            first, last = unit * unit_boxes, min(boxes, (unit + 1) * unit_boxes)
            add = unit > units * s // slices
            count = _transposed_boxes(x, plan, tables, scratch, behind, off, g, first, last, positions, pitch)
            for start in range(b0, b1, together):
                stop = min(b1, start + together)
                for block in range(start, stop):
                    m0, to = block * ROWS, packed_at + (block - start) * ROWS * stride
                    _packed_rows(gy, plan, scratch, to, behind, stride, g, first, last, m0, min(p.rows, m0 + ROWS))
                c = 0
                while c < pitch:
                    _, width = _tile_of(c, pitch, lanes)
                    wide = width == WIDE_VECTORS * lanes
                    panel = address + c * (last - first) * positions * size
                    where = pointer(off) + (0 if wide else stride * 8)
                    for block in range(start, stop):
                        a = address + (packed_at + (block - start) * ROWS * stride) * size
                        row = ((s * p.groups + g) * padded_rows + block * ROWS) * p.taps * pitch
                        for t in range(p.taps):
                            place = pointer(partial) + (row + t * pitch + c) * size
                            b = panel + shifts[t] * width * size
                            _tile_products(zero, wide, a, b, where, count, pointer(zeros), place, p.taps * pitch, add)
                    c += width


@shared
def _add_slices(
    partial: Any, gw: Any, taps: Any, kernel_size: int, rows: int, channels: int, who: int, begin: int, end: int
) -> None:
    """gw[group][row][channel][tap] from the partial gradients of all slices, added in order; tasks are (group, row)."""
    slices, groups, padded_rows, used, pitch = partial.shape
    line = partial.reshape(partial.size)
    one = np.uintp(groups * padded_rows * used * pitch)
    for task in range(begin, end):
        g, m = divmod(task, rows)
        source = np.uintp((g * padded_rows + m) * used * pitch)
        target = np.uintp(task * channels * kernel_size)
        for c in range(np.uintp(channels)):
            for t in range(np.uintp(used)):
                at = source + t * np.uintp(pitch) + c
                total = line[at]
                for s in range(np.uintp(1), np.uintp(slices)):
                    total += line[at + s * one]
                gw[target + c * np.uintp(kernel_size) + np.uintp(taps[t])] = total


def weight_gradient(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """The whole weight gradient of a correlation that `suits`; see contract.Backend.conv_weight_grad."""
    correlation = weight_grad_outer_plan(geometry, x.itemsize)
    lanes, groups = lanes_of(x.itemsize), geometry.groups
    taps = correlation.kernel_taps
    pitch, rows = -(-correlation.channels // lanes) * lanes, -(-correlation.rows // ROWS) * ROWS
    p = correlation.plan[0]
    box_outputs = int(p["box_h"] * p["box_w"])
    unit_boxes = max(1, min(UNIT_OUTPUTS // box_outputs, len(x) * correlation.boxes))
    units = -(-len(x) * correlation.boxes // unit_boxes)
    one = groups * rows * len(taps) * pitch
    slices = slice_count(-(-units // _UNITS_PER_SLICE), one * x.itemsize)
    # A single partial in the order of the weight is the gradient itself, with the padded rows behind its end.
    whole = 1 == slices == groups == len(taps) == geometry.taps and pitch == correlation.channels
    memory = np.empty(one, x.dtype) if whole else call_scratch(slices * one, x.dtype)
    partial = memory.reshape(slices, groups, rows, len(taps), pitch)
    # Each chunk of rows transposes x anew: no more of them than keep the threads busy. They change no sum.
    chunks = max(1, min(rows // ROWS, -(-get_num_threads() // (slices * groups))))
    positions = -(-int(p["channel"]) // lanes) * lanes
    stride = -(-unit_boxes * box_outputs // lanes) * lanes
    together = min(rows // ROWS, max(1, _PACKED_BYTES // (ROWS * stride * x.itemsize)))
    behind = max(pitch * int(p["channel"]) + lanes * lanes, ROWS * stride)
    elements = unit_boxes * positions * pitch + together * ROWS * stride + behind + WIDE_VECTORS * lanes
    tasks = slices * groups * chunks
    team = team_for(tasks, len(x) * correlation.flops * _NS_PER_FLOP)
    weight_grad_outer(
        flat(gy), flat(x), partial, correlation.plan, correlation.tables, correlation.box_offsets,
        scratch_rows(team.size, elements, x.dtype), unit_boxes, positions, stride, together, chunks, team.address, 0,
        tasks,
    )  # fmt: skip
    if whole:
        return memory[: correlation.rows * pitch].reshape(geometry.weight_shape)
    gw = (np.empty if len(taps) == geometry.taps else np.zeros)(geometry.weight_shape, x.dtype)
    arguments = partial, gw.reshape(-1), taps, geometry.taps, correlation.rows, correlation.channels
    share(_add_slices, arguments, groups * correlation.rows, partial.size)
    return gw
