"""Weight gradient with the channels in the lanes: dw[m, tap, c] = Σ over outputs o of gy[m, o] · x[o + tap, c].

Idea: the box of x (gather.py) is transposed to [position][channel], gy to [output][row of a block]; then a tap is a
shift of whole rows of channels, and `simd.outer` sums over the outputs as it sums over channels in the forward pass.
Loop order: unit → block of 8 rows → tile of 3 vectors of channels → tap → output. Registers hold the tile of dw, the
first level the block of gy, the second the box. Only real outputs are in the sum, so that nothing between rows is
multiplied and small images of several samples make one long sum. Cost: one FMA for each (row, tap, channel, output),
one read and write of x and gy for the transposition. Floor: the FMA rate; for many channels (few would waste lanes).

Units of boxes are cut into slices with a partial gradient each, added in order (see weight_grad.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.gather import copy_bytes, gather_box, zero_bytes
from fastconv.backends.cpu.host import flat, kernel
from fastconv.backends.cpu.plan import Correlation, weight_grad_plan
from fastconv.backends.cpu.scratch import call_scratch, scratch
from fastconv.backends.cpu.simd import NARROW, ROWS, WIDE, add_vectors, interleave, lanes_of, outer, transpose
from fastconv.backends.cpu.threads import get_num_threads, parallel_for
from fastconv.backends.cpu.weight_grad import slice_count
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]

_WIDE, _NARROW = WIDE[ROWS], NARROW[ROWS]
_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_UNIT_OUTPUTS = 384  # of a unit, about: long enough for the sums to pay for the tile's loads and stores
_MANY_VECTORS = 6  # of channels: below, a narrow tile takes too large a part of them
_NS_PER_FLOP = 0.01


def suits(correlation: Correlation) -> bool:
    """Several taps share the transposition, and channels and rows fill their vectors and blocks."""
    if correlation.empty or len(correlation.kernel_taps) == 1:
        return False
    lanes = lanes_of(correlation.itemsize)
    many = correlation.channels >= _MANY_VECTORS * lanes or correlation.small
    sizes = ((correlation.channels, lanes), (correlation.rows, ROWS))
    return many and all(4 * n >= 3 * -(-n // whole) * whole for n, whole in sizes)


@kernel
def _gather_unit(
    gy: Any, x: Any, plan: Any, tables: Any, memory: Any, off: Any, group: int, first: int, last: int, pitch: int,
    gy_at: int, gy_stride: int, m0: int, m1: int,
) -> int:  # fmt: skip
    """Boxes first ≤ box < last: x to memory as [box][position][channel], gy rows m0..m1 to memory[gy_at:].

    The box itself lies at the end of memory while it is transposed. Where output o finds the channels of its tap 0 goes
    to off[o]. Returns the number of outputs.
    """
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume = p.depth * p.height * p.width
    outputs = p.outputs_d * p.outputs_h * p.outputs_w
    positions = -(-p.channel // lanes) * lanes
    box_at = gy_at + (m1 - m0 + ROWS) * gy_stride
    address = memory.ctypes.data
    count = 0
    for box in range(first, last):
        rest, bw = divmod(box, p.boxes_w)
        rest, bh = divmod(rest, p.boxes_h)
        n, d = divmod(rest, p.outputs_d)
        h0, w0 = bh * p.box_h, bw * p.box_w
        rows, columns = min(p.box_h, p.outputs_h - h0), min(p.box_w, p.outputs_w - w0)
        image = n * p.groups + group
        gather_box(x, image * p.channels * volume, memory, box_at, plan, tables, d, h0, w0)
        base = (box - first) * positions
        for c in range(0, p.channels, lanes):
            source, target = address + (box_at + c * p.channel) * size, address + (base * pitch + c) * size
            transpose(x, source, p.channel, positions // lanes, target, pitch)
        at = (image * p.rows + m0) * outputs + (d * p.outputs_h + h0) * p.outputs_w + w0
        for r in range(rows):
            for m in range(m1 - m0):
                source = gy.ctypes.data + (at + m * outputs + r * p.outputs_w) * size
                copy_bytes(address + (gy_at + m * gy_stride + count) * size, source, columns * size)
            for column in range(columns):
                off[count + column] = (base + r * p.pitch + column) * pitch
            count += columns
    return count


@kernel
def weight_grad_outer(
    gy: Any, x: Any, partial: Any, plan: Any, tables: Any, shifts: Any, memory: Any, unit_boxes: int, gy_at: int,
    gy_stride: int, chunks: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (slice of units, group, chunk of row blocks).

    partial is [slice][group][row][tap][channel], rows and channels padded. Scratch: boxes of a unit with channels last,
    gy of the chunk, then a gathered box or the packed block of gy and the tile.
    """
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    slices, padded_rows, pitch = partial.shape[0], partial.shape[2], partial.shape[4]
    boxes = x.size // (p.groups * p.channels * p.depth * p.height * p.width) * p.outputs_d * p.boxes_h * p.boxes_w
    units = -(-boxes // unit_boxes)
    off = np.empty(gy_stride, np.int64)
    zeros = np.zeros(ROWS, x.dtype)
    tile = np.empty((ROWS, _WIDE * lanes), x.dtype)
    address = memory.ctypes.data
    for task in range(begin, end):
        rest, chunk = divmod(task, chunks)
        s, g = divmod(rest, p.groups)
        blocks = padded_rows // ROWS
        b0, b1 = blocks * chunk // chunks, blocks * (chunk + 1) // chunks
        m0, m1 = b0 * ROWS, min(p.rows, b1 * ROWS)
        packed_at = gy_at + (m1 - m0 + ROWS) * gy_stride
        for unit in range(units * s // slices, units * (s + 1) // slices):
            first, last = unit * unit_boxes, min(boxes, (unit + 1) * unit_boxes)
            count = _gather_unit(gy, x, plan, tables, memory, off, g, first, last, pitch, gy_at, gy_stride, m0, m1)
            zero_bytes(address + (gy_at + (m1 - m0) * gy_stride) * size, ROWS * gy_stride * size)
            vectors = -(-count // lanes)
            for block in range(b0, b1):
                a = address + packed_at * size
                rows = gy_at + (block - b0) * ROWS * gy_stride
                interleave(x, ROWS, address + rows * size, gy_stride, vectors, a)
                c = 0
                while c < pitch:
                    wide = pitch - c >= _WIDE * lanes
                    width = (_WIDE if wide else _NARROW) * lanes
                    for t in range(p.taps):
                        b = address + (shifts[t] * pitch + c) * size
                        if wide:
                            outer(
                                x, ROWS, _WIDE, a, b, off.ctypes.data, count, zeros.ctypes.data, tile.ctypes.data,
                                _WIDE * lanes, 0,
                            )  # fmt: skip
                        else:
                            outer(
                                x, ROWS, _NARROW, a, b, off.ctypes.data, count, zeros.ctypes.data, tile.ctypes.data,
                                _WIDE * lanes, 0,
                            )  # fmt: skip
                        row = (((s * p.groups + g) * padded_rows + block * ROWS) * p.taps + t) * pitch + c
                        for m in range(ROWS):
                            to = partial.ctypes.data + (row + m * p.taps * pitch) * size
                            add_vectors(x, to, tile.ctypes.data + m * _WIDE * lanes * size, width // lanes)
                    c += width


@kernel
def _add_slices(
    partial: Any, gw: Any, taps: Any, kernel_size: int, rows: int, channels: int, begin: int, end: int
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
    if not gy.size:
        return np.zeros(geometry.weight_shape, x.dtype)
    correlation = weight_grad_plan(geometry, x.itemsize)
    lanes, groups = lanes_of(x.itemsize), geometry.groups
    taps = correlation.kernel_taps
    pitch, rows = -(-correlation.channels // lanes) * lanes, -(-correlation.rows // ROWS) * ROWS
    p = correlation.plan[0]
    box_outputs = int(p["box_h"] * p["box_w"])
    unit_boxes = max(1, min(_UNIT_OUTPUTS // box_outputs, len(x) * correlation.boxes))
    units = -(-len(x) * correlation.boxes // unit_boxes)
    one = groups * rows * len(taps) * pitch
    slices = slice_count(units, one * x.itemsize)
    memory = call_scratch(slices * one, x.dtype)
    memory[:] = 0
    partial = memory.reshape(slices, groups, rows, len(taps), pitch)
    # Each chunk of rows gathers x anew: no more of them than keep the threads busy. They change no sum.
    chunks = max(1, min(rows // ROWS, -(-get_num_threads() // (slices * groups))))
    positions = -(-int(p["channel"]) // lanes) * lanes
    gy_at = unit_boxes * positions * pitch
    gy_stride = -(-unit_boxes * box_outputs // lanes) * lanes
    behind = max(pitch * int(p["channel"]) + lanes * lanes, ROWS * gy_stride)
    elements = gy_at + (rows + ROWS) * gy_stride + behind + _WIDE * lanes
    fixed = (flat(gy), flat(x), partial, correlation.plan, correlation.tables, correlation.box_offsets)

    def call(begin: int, end: int) -> None:
        weight_grad_outer(*fixed, scratch(elements, x.dtype), unit_boxes, gy_at, gy_stride, chunks, begin, end)

    parallel_for(call, slices * groups * chunks, len(x) * correlation.flops * _NS_PER_FLOP)
    gw = (np.empty if len(taps) == geometry.taps else np.zeros)(geometry.weight_shape, x.dtype)
    total = gw.reshape(-1)

    def add(begin: int, end: int) -> None:
        _add_slices(partial, total, taps, geometry.taps, correlation.rows, correlation.channels, begin, end)

    parallel_for(add, groups * correlation.rows, partial.size)
    return gw
