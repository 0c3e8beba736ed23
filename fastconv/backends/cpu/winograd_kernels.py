"""Winograd's minimal filtering: a fraction of the multiplications of a convolution with stride 1 (winograd_simd.py).

Idea: tiles of 4×4 outputs (4 where only one axis has taps) are the columns of small matrix products, one for each
frequency, on the micro-kernel `simd.outer_strided`. Channels and depth taps together are the sum of the products, so
that 3×3 planes of a 3-D kernel do as well. The `form` of a tile is what winograd_simd.py says.

- Large images ("boxes"): a task gathers a box of tile rows in the phases of step 4 (gather.py), so that an element
  of neighbouring tiles lies contiguous; it transforms the box and runs over all blocks of output rows. Filters are
  transformed once, before. The transformed box (frequencies · channels · tiles) and the products of one block live in
  the second and third level; the floor is the FMA rate at the products of the frequencies, for each output of 3×3 taps
  36/144 of the direct ones, of 5×5 64/400, of 3, 5 and 7 taps 6/12, 8/20 and 10/28.
- Small images ("tiles"): a few vectors of tiles from all samples together, gathered lane by lane; each task takes a
  block of output rows and transforms its own filters, so that these never leave its cache.

Rounding: relative L2 error about 2e-6 (3×3), 6e-6 (5×5) and 1, 1.5, 4e-6 (3, 5, 7 taps of one axis) for 256 channels
of unit variance; direct sums have 0.5e-6. An overflow, an infinity or a NaN would spread over its tile: samples with a
result that is not finite are computed again directly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_bytes, gather_channels, place_of_box, zero_bytes
from fastconv.backends.cpu.host import inlined, kernel, pointer, routine
from fastconv.backends.cpu.simd import NARROW, ROWS, WIDE, outer_strided
from fastconv.backends.cpu.team import shared
from fastconv.backends.cpu.winograd_matrices import outputs, patch
from fastconv.backends.cpu.winograd_simd import (
    all_zero,
    filter_transform,
    input_transform,
    input_transform_gathered,
    output_transform,
)

LANES = lanes_of(4)
_WIDE, _NARROW = WIDE[ROWS], NARROW[ROWS]
STAGGER = LANES  # elements between frequencies, lest all of them fall into one set of the first-level cache
FILTER_PADDING = 16  # elements behind the filters of a frequency: a vector reaches into them, and they stagger the sets
TILE_COLUMNS = 96 // (_WIDE * LANES) * _WIDE * LANES

BOXES, CHANNELS, NUMBERS = range(3)
"""What the tasks of `winograd_boxes` are: whole boxes; or of one box that threads share, first its channels to be
transformed, then its numbers of (block of rows, plane) to be computed from them all."""

_patch, _outputs = inlined(patch), inlined(outputs)


@inlined
def frequencies_of(form: Any) -> Any:
    """Of a tile: the products that it takes for each channel and row."""
    return _patch(len(form[0])) * _patch(len(form[1]))


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _transform_filters(
    form: Any, w: Any, filters: Any, plan: Any, taps: Any, row_step: int, channel_step: int, kernel_size: int, depth:
    int, first: int, begin: int, end: int,
) -> None:  # fmt: skip
    """w to [group][block of rows][frequency][depth tap][channel][row of block], zeros at the end.

    `taps` are those of the form for each of `depth`, in the order of their offsets. A frequency is followed by
    FILTER_PADDING elements. Blocks begin ≤ block < end of all groups; block `first` is stored first in `filters`.
    """
    p = plan[0]
    size = w.itemsize
    count = p.channels * depth
    step = count * ROWS + FILTER_PADDING
    plane, frequencies = len(form[0]) * len(form[1]), frequencies_of(form)
    padded = np.zeros(plane * ROWS, w.dtype)
    for task in range(begin, end):
        g, block = divmod(task, p.blocks)
        r0 = block * ROWS
        valid = min(ROWS, p.rows - r0)
        source = g * p.rows * p.channels * kernel_size + r0 * row_step
        for d in range(depth):  # the order of the filters: a vector reaches into the next, which is written later
            for c in range(p.channels):
                at = source + c * channel_step
                place = (task - first) * frequencies * step + (d * p.channels + c) * ROWS
                target = pointer(filters) + place * size
                here = plane * d
                if valid == ROWS and taps[here + plane - 1] - taps[here] == plane - 1:  # neighbours: read in place
                    filter_transform(w, form, pointer(w) + (at + taps[here]) * size, row_step, target, step)
                    continue
                for m in range(np.uintp(valid)):
                    for t in range(np.uintp(plane)):
                        tap = np.uintp(at + taps[np.uintp(here) + t])
                        padded[m * np.uintp(plane) + t] = w[tap + m * np.uintp(row_step)]
                filter_transform(w, form, pointer(padded), plane, target, step)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def transform_filters(
    form: Any, w: Any, filters: Any, plan: Any, taps: Any, row_step: int, channel_step: int, kernel_size: int, depth:
    int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """All filters, as `_transform_filters` lays them out; tasks are (group, block of rows)."""
    _transform_filters(form, w, filters, plan, taps, row_step, channel_step, kernel_size, depth, 0, begin, end)


@routine
def _products(
    like: Any, frequencies: int, filters: int, tiles: int, count: int, apart: int, columns: int, channels: int, zeros:
    int, products: int, first: int, last: int, here: int,
) -> None:  # fmt: skip
    """products[number][f][row][column] = Σ_k filters[block][f][k][row] · tiles[f][plane · channels + k][column].

    Numbers first ≤ number < last stand for (block of rows, plane of `here`); the tiles of a frequency lie `apart`
    elements behind those of the last. The numbers run innermost: what a vector of columns needs is read once for all.
    """
    size = like.itemsize
    for f in range(frequencies):
        q = 0
        while q < columns:
            wide = columns - q >= _WIDE * LANES
            for number in range(first, last):
                block, plane = divmod(number, here)
                a = filters + (block * frequencies + f) * (count * ROWS + FILTER_PADDING) * size
                b = tiles + (f * apart + plane * channels * columns + q) * size
                c = products + (((number - first) * frequencies + f) * (ROWS * columns + STAGGER) + q) * size
                if wide:
                    outer_strided(like, ROWS, _WIDE, a, b, columns, count, zeros, c, columns, 0, 0)
                else:
                    outer_strided(like, ROWS, _NARROW, a, b, columns, count, zeros, c, columns, 0, 0)
            q += (_WIDE if wide else _NARROW) * LANES


@routine
def _store(
    y: Any, to: int, row_step: int, column_step: int, results: Any, lane: int, across: int, rows: int, columns: int
) -> None:
    """rows × columns outputs of neighbouring tiles, `across` wide, from `lane` on to y."""
    size = y.itemsize
    for i in range(rows):
        at, target = (i * LANES + lane) * across, to + i * row_step
        if column_step == 1:
            copy_bytes(pointer(y) + target * size, pointer(results) + at * size, columns * size)
        else:
            for j in range(np.uintp(columns)):
                y[np.uintp(target) + j * np.uintp(column_step)] = results[np.uintp(at) + j]


@routine
def _finish_row(
    form: Any, y: Any, to: int, row_step: int, column_step: int, products: int, step: int, bias: int, relu: int,
    results: Any, check: int, pitch: int, columns: int, tile_rows: int, tile_columns: int, height: int, width: int,
) -> None:  # fmt: skip
    """The outputs of a box in one row of weights, to y[to:], from its products of `columns` columns.

    `height` and `width` are the outputs from there to the end of the plane. A vector of tiles side by side whose
    outputs all exist is stored directly, others by way of `results`. See `output_transform` for `check`.
    """
    size = y.itemsize
    high, across = _outputs(len(form[0])), _outputs(len(form[1]))
    ty = tx = 0
    for q in range(0, columns, LANES):
        at = to + ty * high * row_step + tx * across * column_step
        whole = ty < tile_rows and tx + LANES <= tile_columns and column_step == 1
        whole = whole and (ty + 1) * high <= height and (tx + LANES) * across <= width
        target, apart = (pointer(y) + at * size, row_step) if whole else (pointer(results), across * LANES)
        output_transform(y, form, products + q * size, step, bias, relu, target, apart, check)
        left = LANES
        while left > 0:
            tiles = min(left, pitch - tx)
            valid = min(tile_columns - tx, tiles)
            if not whole and ty < tile_rows and valid > 0:
                rows, length = min(high, height - ty * high), min(valid * across, width - tx * across)
                at = to + ty * high * row_step + tx * across * column_step
                _store(y, at, row_step, column_step, results, LANES - left, across, rows, length)
            left -= tiles
            tx += tiles
            if tx == pitch:
                tx = 0
                ty += 1


@inlined
def _ranges(unit: int, box: int, channels: int, numbers: int, begin: int, end: int) -> Any:
    """Boxes to go through, channels to transform and numbers to compute of each: what these tasks stand for."""
    if unit == CHANNELS:
        return box, box + 1, begin, end, 0, 0
    if unit == NUMBERS:
        return box, box + 1, 0, 0, begin, end
    return begin, end, 0, channels, 0, numbers


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _transform_box(
    form: Any, x: Any, base: int, plan: Any, tables: Any, off: Any, memory: Any, at: int, transformed: int, d: int, h0:
    int, w0: int, columns: int, c0: int, c1: int,
) -> None:  # fmt: skip
    """Channels c0 ≤ c < c1 of a box from x[base:], gathered to memory[at:], to [frequency][plane][channel][column].

    The last vector of a channel reaches into the next one. That is gathered too, or zeros if there is none: what is
    computed there and thrown away, but checked, must not depend on who does it.
    """
    p = plan[0]
    size, box, behind = x.itemsize, pointer(memory, at), min(c1 + 1, p.channels)
    frequencies, apart = frequencies_of(form), p.channels * p.planes * columns + STAGGER
    gather_channels(x, base, memory, at, plan, tables, d, h0, w0, c0, behind)
    zero_bytes(box + behind * p.channel * size, columns * size)
    for c in range(c0, c1):
        for plane in range(p.planes):
            taps = pointer(off) + 8 * frequencies * (c * p.planes + plane)
            to = transformed + (plane * p.channels + c) * columns * size
            for q in range(0, columns, LANES):
                input_transform(x, form, box + q * size, taps, to + q * size, apart)


PHASE = np.dtype([(name, np.int64) for name in ("boxes", "tables", "offsets", "height", "width", "several", "work")])
"""A phase of the dilation: boxes of a sample, where its tables and offsets begin, its outputs, blocks whose products
are computed together, and the elements of scratch in front of a transformed box."""


@shared(allocates=True)  # type: ignore[untyped-decorator]
def winograd_boxes(
    form: Any, x: Any, filters: Any, start: Any, y: Any, plans: Any, tables: Any, off: Any, phases: Any, memory: Any,
    transformed: Any, not_finite: Any, relu: int, depth: int, together: int, outputs_d: int, phase: int, unit: int, box:
    int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks are boxes of all phases of the dilation, one phase after the other, or parts of one `box` of one `phase`.

    A whole box is transformed to the thread's own scratch, one that threads share to `transformed`. Each phase has its
    plan, tables, offsets and PHASE.
    """
    own, before = memory[who], 0
    for n in range(len(phases)):
        f, low, high = phases[n], begin, end
        if unit == BOXES:
            boxes = not_finite.size * f.boxes
            low, high = max(begin - before, 0), min(end - before, boxes)
            before += boxes
        elif n != phase:
            continue
        if low < high:
            _boxes(
                form, x, filters, start, y, plans[n:], tables[f.tables :], off[f.offsets :], own,
                pointer(own, f.work) if unit == BOXES else pointer(transformed), not_finite, relu, depth, together,
                outputs_d, f.height, f.width, f.several, unit, box, low, high,
            )  # fmt: skip


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _boxes(
    form: Any, x: Any, filters: Any, start: Any, y: Any, plan: Any, tables: Any, off: Any, scratch: Any, b: int,
    not_finite: Any, relu: int, depth: int, together: int, outputs_d: int, height: int, width: int, several: int, unit:
    int, box: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Boxes of a phase are (sample, group, some planes, box of tile rows, box of tile columns), tasks what `unit` says.

    The plan is that of the phase's tiles: its outputs are tiles, its taps the elements of a patch, its target the
    outputs; along the depth a step takes some planes of outputs `together`, whose `depth` taps share the gathered
    planes. `outputs_d`, `height` and `width` count the outputs of the phase, `b` is where a box is transformed to.
    Scratch: products of `several` numbers, check, outputs, box.
    """
    p = plan[0]
    size, volume = x.itemsize, p.depth * p.height * p.width
    plane = p.target_h * p.target_w
    planes, count = p.channels * p.planes, p.channels * depth
    most = -(-((p.box_h - 1) * p.pitch + p.box_w) // LANES) * LANES
    frequencies, high, across = frequencies_of(form), _outputs(len(form[0])), _outputs(len(form[1]))
    products = several * frequencies * (ROWS * most + STAGGER)
    check, results = scratch[products:][:LANES], scratch[products + LANES :]
    box_at = products + LANES * (1 + high * across)
    zeros = np.zeros(ROWS, x.dtype)
    c = pointer(scratch)
    box0, box1, c0, c1, number0, number1 = _ranges(unit, box, p.channels, p.blocks * together, begin, end)
    for task in range(box0, box1):
        image, d, h0, w0 = place_of_box(p, task)
        n, g = divmod(image, p.groups)
        tile_rows, tile_columns = min(p.box_h, p.outputs_h - h0), min(p.box_w, p.outputs_w - w0)
        columns = -(-((tile_rows - 1) * p.pitch + tile_columns) // LANES) * LANES
        if c0 < c1:
            _transform_box(
                form, x, image * p.channels * volume, plan, tables, off, scratch, box_at, b, d, h0, w0, columns, c0, c1,
            )  # fmt: skip
        step, apart = ROWS * columns + STAGGER, planes * columns + STAGGER
        here = min(together, outputs_d - d * together)
        zero_bytes(pointer(check), LANES * size)
        below, right = height - h0 * high, width - w0 * across
        a = pointer(filters) + g * p.blocks * frequencies * (count * ROWS + FILTER_PADDING) * size
        for first in range(number0, min(number1, p.blocks * here), several):
            last = min(first + several, number1, p.blocks * here)
            _products(x, frequencies, a, b, count, apart, columns, p.channels, pointer(zeros), c, first, last, here)
            for m in range((last - first) * ROWS):
                block, plane_d = divmod(first + m // ROWS, here)
                row = block * ROWS + m % ROWS
                if row >= p.rows:
                    continue
                base = ((image * p.rows + row) * p.target_d + p.first_d + (d * together + plane_d) * p.stride_d) * plane
                base += (p.first_h + h0 * high * p.stride_h) * p.target_w + p.first_w + w0 * across * p.stride_w
                bias = pointer(start) + (g * p.blocks * ROWS + row) * size
                of_row = c + (m // ROWS * frequencies * step + m % ROWS * columns) * size
                _finish_row(
                    form, y, base, p.stride_h * p.target_w, p.stride_w, of_row, step, bias, relu, results,
                    pointer(check), p.pitch, columns, tile_rows, tile_columns, below, right,
                )  # fmt: skip
        if not all_zero(check):
            not_finite[n] = True


@kernel
def tile_tables(taps_h: int, taps_w: int, plan: Any, samples: int, first: int, index: Any, masks: Any) -> None:
    """For the tiles from number `first` (sample-major): source index of lane t relative to its channel, inside masks.

    index [vectors · lanes], masks [vectors][frequencies]; lanes behind the last tile read nothing.
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
        y, x = ty * _outputs(taps_h) + p.low_h, tx * _outputs(taps_w) + p.low_w
        index[lane] = n * p.groups * p.channels * p.height * p.width + y * p.width + x
        for i in range(_patch(taps_h)):
            for j in range(_patch(taps_w)):
                if 0 <= y + i < p.height and 0 <= x + j < p.width:
                    masks[lane // LANES, _patch(taps_w) * i + j] |= 1 << (lane % LANES)


@shared
def transform_tiles(
    form: Any, x: Any, tiles: Any, plan: Any, index: Any, masks: Any, group: int, who: int, begin: int, end: int
) -> None:
    """Channels begin ≤ c < end of the group to tiles[frequency][channel][column]."""
    p = plan[0]
    size = x.itemsize
    columns = index.size
    for c in range(begin, end):
        source = pointer(x) + (group * p.channels + c) * p.height * p.width * size
        for q in range(0, columns, LANES):
            to = pointer(tiles) + (c * columns + q) * size
            inside = pointer(masks) + q // LANES * frequencies_of(form) * 8
            input_transform_gathered(
                x, form, source, pointer(index) + 8 * q, inside, p.width, to, p.channels * columns + STAGGER
            )


@shared(allocates=True)  # type: ignore[untyped-decorator]
def winograd_tiles(
    form: Any, w: Any, tiles: Any, start: Any, y: Any, plan: Any, taps: Any, memory: Any, not_finite: Any, relu: int,
    height: int, width: int, samples: int, first: int, columns: int, group: int, row_step: int, channel_step: int,
    kernel_size: int, several: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Blocks of rows begin ≤ block < end of the group, for the `columns` tiles from number `first` on.

    Scratch: transformed filters of `several` blocks, products, checks, outputs.
    """
    p = plan[0]
    size = w.itemsize
    count = p.channels
    per_sample = p.outputs_h * p.outputs_w
    frequencies, high, across = frequencies_of(form), _outputs(len(form[0])), _outputs(len(form[1]))
    of_block = frequencies * (count * ROWS + FILTER_PADDING)
    step = ROWS * columns + STAGGER
    filters = memory[who]
    checks = filters[several * (of_block + frequencies * step) :][:columns]
    results = filters[several * (of_block + frequencies * step) + columns :]
    zero_bytes(pointer(checks), columns * w.itemsize)
    address = pointer(filters)
    c = address + several * of_block * size
    apart = count * columns + STAGGER
    zeros = np.zeros(ROWS, w.dtype)
    for low in range(begin, end, several):
        last, number = min(low + several, end), group * p.blocks + low
        _transform_filters(
            form, w, filters, plan, taps, row_step, channel_step, kernel_size, 1, number, number, number + last - low
        )
        _products(
            w, frequencies, address, pointer(tiles), count, apart, columns, count, pointer(zeros), c, 0, last - low, 1,
        )  # fmt: skip
        for m in range(min((last - low) * ROWS, p.rows - low * ROWS)):
            row = group * p.rows + low * ROWS + m
            bias = pointer(start) + (number * ROWS + m) * size
            of_row = c + (m // ROWS * frequencies * step + m % ROWS * columns) * size
            for q in range(0, columns, LANES):
                output_transform(
                    w, form, of_row + q * size, step, bias, relu, pointer(results), across * LANES, pointer(checks, q)
                )
                for lane in range(LANES):
                    n, rest = divmod(first + q + lane, per_sample)
                    if n >= samples:
                        break
                    ty, tx = divmod(rest, p.outputs_w)
                    oh, ow = ty * high, tx * across
                    at = (n * p.groups * p.rows + row) * height * width + oh * width + ow
                    rows, length = min(high, height - oh), min(across, width - ow)
                    _store(y, at, width, 1, results, lane, across, rows, length)
    for tile in range(min(columns, samples * per_sample - first)):
        if checks[tile] != 0:
            not_finite[(first + tile) // per_sample] = True
