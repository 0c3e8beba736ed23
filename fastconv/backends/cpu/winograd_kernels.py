"""Winograd F(4×4, 3×3): a quarter of the multiplications of a 3×3 convolution with stride 1 (see winograd_simd.py).

Idea: tiles of 4×4 outputs are the columns of 36 small matrix products, one for each frequency, on the micro-kernel
`simd.outer`. Channels and depth taps together are the sum of the products, so that 3×3 planes of a 3-D kernel do as
well.

- Large images ("boxes"): a task gathers a box of tile rows in the 16 phases of step 4 (gather.py), so that an element
  of neighbouring tiles lies contiguous; it transforms the box and runs over all blocks of output rows. Filters are
  transformed once, before. The transformed box (36 · channels · tiles) and the products of one block live in the
  second and third level; the floor is the FMA rate at 36/144 of the direct products.
- Small images ("tiles"): a few vectors of tiles from all samples together, gathered lane by lane; each task takes a
  block of output rows and transforms its own filters, so that these never leave its cache.

Rounding: relative L2 error about 3e-6 for 256 channels of unit variance, ten times that of direct sums. An overflow,
an infinity or a NaN would spread over its tile: samples with a result that is not finite are computed again directly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_bytes, gather_box, place_of_box
from fastconv.backends.cpu.host import kernel, pointer, routine
from fastconv.backends.cpu.simd import NARROW, ROWS, WIDE, outer
from fastconv.backends.cpu.winograd_simd import (
    FREQUENCIES,
    OUTPUTS,
    filter_transform,
    input_transform,
    input_transform_gathered,
    output_transform,
)

LANES = lanes_of(4)
_WIDE, _NARROW = WIDE[ROWS], NARROW[ROWS]
STAGGER = LANES  # elements between frequencies, lest all 36 fall into one set of the first-level cache
VECTOR_OUTPUTS = OUTPUTS * OUTPUTS * LANES  # elements of the outputs of one vector of tiles
FILTER_PADDING = 16  # elements behind the filters of a frequency: a vector reaches into them, and they stagger the sets
TILE_COLUMNS = 96 // (_WIDE * LANES) * _WIDE * LANES


@kernel
def transform_filters(
    w: Any, frequencies: Any, plan: Any, taps: Any, row_step: int, channel_step: int, kernel_size: int, depth: int,
    first: int, begin: int, end: int,
) -> None:  # fmt: skip
    """w to [group][block of rows][frequency][channel, depth tap][row of block], zeros at the end.

    `taps` are the 9 · depth taps in the order of their offsets. A frequency is followed by FILTER_PADDING elements.
    Tasks begin ≤ task < end of (group, block); task `first` is the one stored at the beginning of `frequencies`.
    """
    p = plan[0]
    size = w.itemsize
    count = p.channels * depth
    step = count * ROWS + FILTER_PADDING
    padded = np.zeros(9 * ROWS, w.dtype)
    for task in range(begin, end):
        g, block = divmod(task, p.blocks)
        r0 = block * ROWS
        valid = min(ROWS, p.rows - r0)
        source = g * p.rows * p.channels * kernel_size + r0 * row_step
        for c in range(p.channels):
            for d in range(depth):
                at = source + c * channel_step
                place = (task - first) * FREQUENCIES * step + (c * depth + d) * ROWS
                target = pointer(frequencies) + place * size
                if valid == ROWS and taps[9 * d + 8] - taps[9 * d] == 8:  # nine neighbours: read where they are
                    filter_transform(w, pointer(w) + (at + taps[9 * d]) * size, row_step, target, step)
                    continue
                for m in range(np.uintp(valid)):
                    for t in range(np.uintp(9)):
                        tap = np.uintp(at + taps[np.uintp(9 * d) + t])
                        padded[m * np.uintp(9) + t] = w[tap + m * np.uintp(row_step)]
                filter_transform(w, pointer(padded), 9, target, step)


@routine
def _products(
    like: Any, filters: int, tiles: int, off: int, count: int, apart: int, columns: int, zeros: int, products: int,
    first: int, last: int, here: int,
) -> None:  # fmt: skip
    """products[number][f][row][column] = Σ_k filters[block][f][k][row] · tiles[f][off[k] + plane · columns + column].

    Numbers first ≤ number < last stand for (block of rows, plane of `here`); the tiles of a frequency lie `apart`
    elements behind those of the last. The numbers run innermost: what a vector of columns needs is read once for all.
    """
    size = like.itemsize
    for f in range(FREQUENCIES):
        q = 0
        while q < columns:
            wide = columns - q >= _WIDE * LANES
            for number in range(first, last):
                block, plane = divmod(number, here)
                a = filters + (block * FREQUENCIES + f) * (count * ROWS + FILTER_PADDING) * size
                b = tiles + (f * apart + plane * columns + q) * size
                c = products + (((number - first) * FREQUENCIES + f) * (ROWS * columns + STAGGER) + q) * size
                if wide:
                    outer(like, ROWS, _WIDE, a, b, off, count, zeros, c, columns, 0, 0)
                else:
                    outer(like, ROWS, _NARROW, a, b, off, count, zeros, c, columns, 0, 0)
            q += (_WIDE if wide else _NARROW) * LANES


@routine(fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def _store(y: Any, to: int, row_step: int, column_step: int, outputs: Any, lane: int, rows: int, columns: int) -> bool:
    """rows × columns outputs of neighbouring tiles from `lane` on to y; False if one is not finite."""
    size = y.itemsize
    check = y.dtype.type(0)
    for i in range(rows):
        at, target = (i * LANES + lane) * OUTPUTS, to + i * row_step
        if column_step == 1:
            copy_bytes(pointer(y) + target * size, pointer(outputs) + at * size, columns * size)
        else:
            for j in range(np.uintp(columns)):
                y[np.uintp(target) + j * np.uintp(column_step)] = outputs[np.uintp(at) + j]
        for j in range(np.uintp(columns)):
            check += outputs[np.uintp(at) + j] * y.dtype.type(0)
    return bool(check == 0)


@routine
def _store_vector(
    y: Any, to: int, p: Any, outputs: Any, first: int, columns: int, tile_rows: int, tile_columns: int,
    height: int, width: int,
) -> bool:  # fmt: skip
    """The outputs of a vector of tiles of a box, from number `first` on, to y; False if one is not finite.

    `to` is where the box begins in y, `height` and `width` are the outputs from there to the end of the plane.
    """
    row_step, column_step = p.stride_h * p.target_w, p.stride_w
    finite, tile = True, first
    while tile < min(first + LANES, columns):
        ty, tx = divmod(tile, p.pitch)
        after = min(first + LANES, (ty + 1) * p.pitch)
        valid = min(tile_columns, after - ty * p.pitch) - tx
        if ty < tile_rows and valid > 0:
            oh, ow = ty * OUTPUTS, tx * OUTPUTS
            rows, length = min(OUTPUTS, height - oh), min(valid * OUTPUTS, width - ow)
            at = to + oh * row_step + ow * column_step
            finite &= _store(y, at, row_step, column_step, outputs, tile - first, rows, length)
        tile = after
    return finite


@kernel
def winograd_boxes(
    x: Any, filters: Any, start: Any, y: Any, plan: Any, tables: Any, off: Any, memory: Any, not_finite: Any, relu: int,
    depth: int, together: int, outputs_d: int, height: int, width: int, several: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (sample, group, some planes, box of tile rows, box of tile columns).

    The plan is that of the tiles of one phase of the dilation: its outputs are tiles, its taps the 36 elements of a
    patch, its target the outputs; along the depth a step takes some planes of outputs `together`, whose `depth` taps
    share the gathered planes. `outputs_d`, `height` and `width` count the outputs of the phase. Scratch: box,
    transformed box, products of `several` blocks of rows, outputs.
    """
    p = plan[0]
    size = x.itemsize
    volume = p.depth * p.height * p.width
    plane = p.target_h * p.target_w
    planes, count = p.channels * p.planes, p.channels * depth
    most = -(-((p.box_h - 1) * p.pitch + p.box_w) // LANES) * LANES
    box_size = p.channels * p.channel + most
    products_at = box_size + FREQUENCIES * (planes * most + STAGGER)
    outputs = memory[products_at + several * FREQUENCIES * (ROWS * most + STAGGER) :]
    address = pointer(memory)
    zeros, steps = np.zeros(ROWS, x.dtype), np.empty(count, np.int64)
    for task in range(begin, end):
        image, d, h0, w0 = place_of_box(p, task)
        n, g = divmod(image, p.groups)
        tile_rows, tile_columns = min(p.box_h, p.outputs_h - h0), min(p.box_w, p.outputs_w - w0)
        gather_box(x, image * p.channels * volume, memory, 0, plan, tables, d, h0, w0)
        columns = -(-((tile_rows - 1) * p.pitch + tile_columns) // LANES) * LANES
        apart = planes * columns + STAGGER
        for k in range(planes):
            for q in range(0, columns, LANES):
                to = address + (box_size + k * columns + q) * size
                taps = pointer(off) + 8 * FREQUENCIES * k
                input_transform(x, address + q * size, taps, to, apart)
        for k in range(count):
            steps[k] = (k // depth * p.planes + k % depth) * columns
        step = ROWS * columns + STAGGER
        here = min(together, outputs_d - d * together)
        below, right = height - h0 * OUTPUTS, width - w0 * OUTPUTS
        a = pointer(filters) + g * p.blocks * FREQUENCIES * (count * ROWS + FILTER_PADDING) * size
        b, c = address + box_size * size, address + products_at * size
        for first in range(0, p.blocks * here, several):
            last = min(first + several, p.blocks * here)
            _products(x, a, b, pointer(steps), count, apart, columns, pointer(zeros), c, first, last, here)
            for m in range((last - first) * ROWS):
                block, plane_d = divmod(first + m // ROWS, here)
                row = block * ROWS + m % ROWS
                if row >= p.rows:
                    continue
                base = ((image * p.rows + row) * p.target_d + p.first_d + (d * together + plane_d) * p.stride_d) * plane
                base += (p.first_h + h0 * OUTPUTS * p.stride_h) * p.target_w + p.first_w + w0 * OUTPUTS * p.stride_w
                bias = pointer(start) + (g * p.blocks * ROWS + row) * size
                of_row = c + (m // ROWS * FREQUENCIES * step + m % ROWS * columns) * size
                for q in range(0, columns, LANES):
                    output_transform(x, of_row + q * size, step, bias, relu, pointer(outputs))
                    if not _store_vector(y, base, p, outputs, q, columns, tile_rows, tile_columns, below, right):
                        not_finite[n] = True


@kernel
def tile_tables(plan: Any, samples: int, first: int, index: Any, masks: Any) -> None:
    """For the tiles from number `first` (sample-major): source index of lane t relative to its channel, inside masks.

    index [vectors · lanes], masks [vectors][36]; lanes behind the last tile read nothing.
    """
    p = plan[0]
    per_sample = p.outputs_h * p.outputs_w
    masks[:] = 0
    for lane in range(index.size):
        tile = first + lane
        index[lane] = 0
        if tile >= samples * per_sample:
            continue
        n, rest = divmod(tile, per_sample)
        ty, tx = divmod(rest, p.outputs_w)
        y, x = ty * OUTPUTS + p.low_h, tx * OUTPUTS + p.low_w
        index[lane] = n * p.groups * p.channels * p.height * p.width + y * p.width + x
        for i in range(6):
            for j in range(6):
                if 0 <= y + i < p.height and 0 <= x + j < p.width:
                    masks[lane // LANES, 6 * i + j] |= 1 << (lane % LANES)


@kernel
def transform_tiles(x: Any, tiles: Any, plan: Any, index: Any, masks: Any, group: int, begin: int, end: int) -> None:
    """Channels begin ≤ c < end of the group to tiles[frequency][channel][column]."""
    p = plan[0]
    size = x.itemsize
    columns = index.size
    for c in range(begin, end):
        source = pointer(x) + (group * p.channels + c) * p.height * p.width * size
        for q in range(0, columns, LANES):
            to = pointer(tiles) + (c * columns + q) * size
            inside = pointer(masks) + q // LANES * FREQUENCIES * 8
            input_transform_gathered(
                x, source, pointer(index) + 8 * q, inside, p.width, to, p.channels * columns + STAGGER
            )


@kernel
def winograd_tiles(
    w: Any, tiles: Any, start: Any, y: Any, plan: Any, taps: Any, memory: Any, not_finite: Any, relu: int,
    height: int, width: int, samples: int, first: int, columns: int, group: int, row_step: int, channel_step: int,
    several: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Blocks of rows begin ≤ block < end of the group, for the `columns` tiles from number `first` on.

    Scratch: transformed filters of `several` blocks, products, outputs.
    """
    p = plan[0]
    size = w.itemsize
    count = p.channels
    per_sample = p.outputs_h * p.outputs_w
    of_block = FREQUENCIES * (count * ROWS + FILTER_PADDING)
    step = ROWS * columns + STAGGER
    outputs = memory[several * (of_block + FREQUENCIES * step) :]
    address = pointer(memory)
    c = address + several * of_block * size
    steps = np.arange(count) * columns
    apart = count * columns + STAGGER
    zeros = np.zeros(ROWS, w.dtype)
    for low in range(begin, end, several):
        high, number = min(low + several, end), group * p.blocks + low
        transform_filters(w, memory, plan, taps, row_step, channel_step, 9, 1, number, number, number + high - low)
        _products(
            w, address, pointer(tiles), pointer(steps), count, apart, columns, pointer(zeros), c, 0, high - low, 1
        )
        for m in range(min((high - low) * ROWS, p.rows - low * ROWS)):
            row = group * p.rows + low * ROWS + m
            bias = pointer(start) + (number * ROWS + m) * size
            of_row = c + (m // ROWS * FREQUENCIES * step + m % ROWS * columns) * size
            for q in range(0, columns, LANES):
                output_transform(w, of_row + q * size, step, bias, relu, pointer(outputs))
                for lane in range(LANES):
                    n, rest = divmod(first + q + lane, per_sample)
                    if n >= samples:
                        break
                    ty, tx = divmod(rest, p.outputs_w)
                    oh, ow = ty * OUTPUTS, tx * OUTPUTS
                    at = (n * p.groups * p.rows + row) * height * width + oh * width + ow
                    rows, length = min(OUTPUTS, height - oh), min(OUTPUTS, width - ow)
                    if not _store(y, at, width, 1, outputs, lane, rows, length):
                        not_finite[n] = True
