"""Winograd's tiles of large images: boxes of them, gathered and transformed by vectors (winograd_kernels.py).

A task gathers a box of tile rows in the phases of step 4 (gather.py), or 8 or 16 where the convolution has a step, so
that an element of neighbouring tiles lies contiguous; it transforms the box and runs over all blocks of output rows.
Filters are transformed once, before. The transformed box (frequencies · phases · channels · tiles) and the products of
one block live in the second and third level.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.gather import gather_channels, place_of_box, zero_bytes
from fastconv.backends.cpu.host import TWO_UNITS, inlined, pointer, routine
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.team import shared
from fastconv.backends.cpu.winograd_kernels import (
    FILTER_PADDING,
    LANES,
    STAGGER,
    store_tiles,
    tile_frequencies,
    tile_outputs,
    tile_patch,
    tile_phase,
    tile_phases,
    tile_products,
    tile_spread,
    values_at,
)
from fastconv.backends.cpu.winograd_simd import all_zero, input_transform, output_transform

BOXES, CHANNELS, NUMBERS = range(3)
"""What the tasks of `winograd_boxes` are: whole boxes; or of one box that threads share, first its channels to be
transformed, then its numbers of (block of rows, plane) to be computed from them all."""


@routine
def _finish_row(
    form: Any, y: Any, to: int, row_step: int, column_step: int, products: int, step: int, bias: int, relu: int,
    results: Any, check: int, pitch: int, columns: int, tile_rows: int, tile_columns: int, above: int, before: int,
    height: int, width: int,
) -> None:  # fmt: skip
    """The outputs of a box in one row of weights, to y[to:], from its products of `columns` columns.

    `height` and `width` are the outputs from there to the end of the plane, of which the first ones, `above` and
    `before`, lie outside. A vector of tiles side by side whose
    outputs all exist is stored directly, others by way of `results`. See `output_transform` for `check`.
    """
    size = y.itemsize
    high, across = tile_outputs(form)
    ty = tx = 0
    for q in range(0, columns, LANES):
        at = to + ty * high * row_step + tx * across * column_step
        whole = (ty > 0 or above == 0) and (tx > 0 or before == 0)
        whole = whole and ty < tile_rows and tx + LANES <= tile_columns and column_step == 1
        whole = whole and (ty + 1) * high <= height and (tx + LANES) * across <= width
        target, apart = (pointer(y) + at * size, row_step) if whole else (pointer(results), across * LANES)
        output_transform(
            y, form, (0,), products + q * size, step, tile_frequencies(form) * step, bias, relu, target, apart, check
        )
        left = LANES
        while left > 0:
            tiles = min(left, pitch - tx)
            valid = min(tile_columns - tx, tiles)
            if not whole and ty < tile_rows and valid > 0:
                i, j = above if ty == 0 else 0, before if tx == 0 else 0
                rows, length = min(high, height - ty * high) - i, min(valid * across, width - tx * across) - j
                at = to + (ty * high + i) * row_step + (tx * across + j) * column_step
                first = (LANES * i + LANES - left) * across + j
                store_tiles(y, at, row_step, column_step, results, first, LANES * across, rows, length)
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
    """Channels c0 ≤ c < c1 of a box from x[base:], by way of memory[at:].

    To [frequency][phase][plane][channel][column].

    The last vector of a channel reaches into the next one. That is gathered too, or zeros if there is none: what is
    computed there and thrown away, but checked, must not depend on who does it.
    """
    p = plan[0]
    size, box, behind = x.itemsize, pointer(memory, at), min(c1 + 1, p.channels)
    phases, (down, across), (high, wide) = tile_phases(form), tile_patch(form), values_at(form)
    of_phase = p.channels * p.planes * columns
    apart = phases * of_phase + STAGGER
    gather_channels(x, base, memory, at, plan, tables, d, h0, w0, c0, behind)
    zero_bytes(box + behind * p.channel * size, columns * size)
    for c in range(c0, c1):
        for plane in range(p.planes):
            taps = pointer(off) + 8 * down * across * (c * p.planes + plane)
            to = transformed + (plane * p.channels + c) * columns * size
            for phase in range(phases):
                kind = tile_phase(form, phase)[2] if phases > 1 else 0
                for q in range(0, columns * size, LANES * size):
                    if kind == 0:
                        input_transform(x, form, 0, box + q, taps, to + q, apart)
                    elif kind == 1:
                        input_transform(x, form, 1, box + q, taps, to + q, apart)
                    elif kind == 2:
                        input_transform(x, form, 2, box + q, taps, to + q, apart)
                    else:
                        input_transform(x, form, 3, box + q, taps, to + q, apart)
                to += of_phase * size
                taps += 8 * (high - kind // 2) * (wide - kind % 2)


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
    Scratch: products of `several` numbers and phases of the outputs, check, outputs, box.
    """
    p = plan[0]
    size, volume = x.itemsize, p.depth * p.height * p.width
    plane = p.target_h * p.target_w
    planes, count, phases, spread = p.channels * p.planes, p.channels * depth, tile_phases(form), tile_spread(form)
    most = -(-((p.box_h - 1) * p.pitch + p.box_w) // LANES) * LANES
    frequencies, (high, across) = tile_frequencies(form), tile_outputs(form)
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
        step, apart = ROWS * columns + STAGGER, phases * planes * columns + STAGGER
        here = min(together, outputs_d - d * together)
        zero_bytes(pointer(check), LANES * size)
        below, right = height - h0 * high, width - w0 * across
        above, before = max(0, -p.first_h) if h0 == 0 else 0, max(0, -p.first_w) if w0 == 0 else 0
        a = pointer(filters) + g * p.blocks * spread * frequencies * (phases * count * ROWS + FILTER_PADDING) * size
        end_of_numbers = min(number1, p.blocks * here) * spread
        for first in range(number0 * spread, end_of_numbers, several):
            last = min(first + several, end_of_numbers)
            tile_products(
                x, form, a, b, count, apart, columns, p.channels, pointer(zeros), c, first, last, here, TWO_UNITS
            )
            for m in range((last - first) // spread * ROWS):
                block, plane_d = divmod(first // spread + m // ROWS, here)
                row = block * ROWS + m % ROWS
                if row >= p.rows:
                    continue
                base = ((image * p.rows + row) * p.target_d + p.first_d + (d * together + plane_d) * p.stride_d) * plane
                base += (p.first_h + h0 * high * p.stride_h) * p.target_w + p.first_w + w0 * across * p.stride_w
                bias = pointer(start) + (g * p.blocks * ROWS + row) * size
                of_row = c + (m // ROWS * spread * frequencies * step + m % ROWS * columns) * size
                _finish_row(
                    form, y, base, p.stride_h * p.target_w, p.stride_w, of_row, step, bias, relu, results,
                    pointer(check), p.pitch, columns, tile_rows, tile_columns, above, before, below, right,
                )  # fmt: skip
        if not all_zero(check):
            not_finite[n] = True
